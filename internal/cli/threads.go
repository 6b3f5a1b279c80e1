package cli

import (
	"runtime"
	"sync"
)

// spareThreads is how many threads are created before they are needed: one for each
// collector, and as many for requests and files that do not answer.
const spareThreads = 32

// makeThreads makes Go's runtime create n threads, which it keeps. A long system call
// needs another thread, and if the machine has none left the runtime ends the program,
// just when it is needed most.
func makeThreads(n int) {
	var all, there sync.WaitGroup
	there.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread() // this thread waits, so the next goroutine needs another
			defer runtime.UnlockOSThread()
			there.Done()
			there.Wait()
		})
	}
	all.Wait()
}
