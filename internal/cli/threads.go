package cli

import (
	"runtime"
	"sync"
)

// spareThreads is how many threads are made before they are needed: one for each
// collector, and for as many requests and files that do not answer.
const spareThreads = 32

// makeThreads has Go's runtime make n threads, which it keeps. A system call that
// takes long needs another thread, and where the machine has none left the runtime
// ends the program, when it is needed most.
func makeThreads(n int) {
	var all, there sync.WaitGroup
	there.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread() // that this one waits on, while the next one needs another
			defer runtime.UnlockOSThread()
			there.Done()
			there.Wait()
		})
	}
	all.Wait()
}
