package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// track enables connection tracking in the network namespace of this thread, which takes
// a rule that uses it.
func track() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "lab"})
	chain := c.AddChain(&nftables.Chain{
		Name: "in", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("a rule of nftables: %w", err)
	}
	return nil
}

// entries is the limit of entries, which is the machine's.
const entries = 80

func conntrackEntries(*guest) (*load, error) {
	if err := setAll("net/netfilter/nf_conntrack_max", strconv.Itoa(entries)); err != nil {
		return nil, err
	}
	return tracked()
}

// tracked keeps connections open, each of which is an entry in the table of this thread's
// network namespace.
func tracked() (*load, error) {
	if err := track(); err != nil {
		return nil, err
	}
	at := loopback(portTrack)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	var open sockets
	made := 0
	return &load{
		step: func(n int) (string, error) {
			for ; made < share(n, entries); made++ {
				client, server, err := pair(listener, at)
				if errors.Is(err, errUnanswered) || errors.Is(err, unix.EPERM) {
					made++
					return err.Error(), nil
				}
				if err != nil {
					return "", err
				}
				open.keep(client)
				open.keep(server)
			}
			return "", nil
		},
		release: func() error { return open.close() },
	}, nil
}

// conntrackEntriesNetns does the same in a separate network namespace with its own
// process, like a container. The exporter is given the procfs of that process.
func conntrackEntriesNetns(*guest) (*load, error) {
	const proc = "/tmp/proc"
	if err := os.Mkdir(proc, 0o755); err != nil {
		return nil, err
	}
	container := exec.Command("/proc/self/exe", workMount, proc)
	container.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	w, err := startWorker(container)
	if err != nil {
		return nil, err
	}
	if refused, err := w.step(); refused != "" || err != nil {
		return nil, errors.Join(errors.New(refused), err)
	}
	in, err := inside(container.Process.Pid)
	if err != nil {
		return nil, err
	}
	if err := setAll("net/netfilter/nf_conntrack_max", strconv.Itoa(entries)); err != nil {
		return nil, err
	}
	l, err := loadInside(in, tracked)
	if err != nil {
		return nil, err
	}
	l.in, l.proc = in, proc
	release := l.release
	l.release = func() error { return errors.Join(release(), w.stop()) }
	return l, nil
}
