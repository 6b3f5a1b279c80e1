// Command sockpressure_exporter exports to Prometheus how near a Linux host is to the
// kernel's limits on sockets and memory.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/sockpressure/sockpressure_exporter/internal/cli"
)

func main() {
	// A scrape is a short burst of work, mostly in system calls, which run in parallel
	// anyway. Threads that look for Go code to run would cost more than they contribute,
	// and more so the more cores there are.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	cli.SetVersion()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
