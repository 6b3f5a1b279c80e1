package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside returns a function that runs others in the network namespace of a process.
func inside(pid int) (func(func() error) error, error) {
	ours, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	return func(f func() error) error {
		runtime.LockOSThread()
		if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
		err := f()
		if back := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); back != nil {
			return fmt.Errorf("leaving the network namespace: %w", back)
		}
		runtime.UnlockOSThread()
		return err
	}, nil
}

// loadInside returns a load in a network namespace.
func loadInside(in func(func() error) error, prepare func() (*load, error)) (l *load, err error) {
	err = in(func() error {
		if err := linkUp("lo", 0); err != nil {
			return err
		}
		l, err = prepare()
		return err
	})
	if err != nil {
		return nil, err
	}
	step, release := l.step, l.release
	l.step = func(n int) (refused string, err error) {
		err = in(func() error {
			refused, err = step(n)
			return err
		})
		return refused, err
	}
	if release != nil {
		l.release = func() error { return in(release) }
	}
	return l, nil
}

// pods creates what the kubelet and a container runtime create for pods, each with its
// own load.
func pods(g *guest) (*load, error) {
	const root, logs = "/sys/fs/cgroup", "/var/log/pods"
	if err := setAll("net/netfilter/nf_conntrack_max", strconv.Itoa(entries)); err != nil {
		return nil, err
	}
	id := strings.Repeat("0123456789abcdef", 4) // of a container
	var all []*load
	var processes []*worker
	for _, pod := range []struct {
		log, cgroup string
		prepare     func(*guest) (*load, error)
	}{
		{
			"shop_cart-0_0f7a2c1e-5b1d-4b0a-9e53-6d1f3b9d1a01",
			"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f7a2c1e_5b1d_4b0a_9e53_6d1f3b9d1a01.slice/cri-containerd-" + id + ".scope",
			acceptQueue,
		},
		{
			"shop_search-1_9d1c6c52-3a55-4d0e-8f61-0b7b1d8e4c02",
			"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod9d1c6c52_3a55_4d0e_8f61_0b7b1d8e4c02.slice/crio-" + id + ".scope/container",
			tcpTimeWait,
		},
		{ // pods with guaranteed resources are not below a class
			"shop_checkout-5d9c_1b2f0c9a-7c11-4a56-a8de-3c2a1f0e9b03",
			"kubepods.slice/kubepods-pod1b2f0c9a_7c11_4a56_a8de_3c2a1f0e9b03.slice/docker-" + id + ".scope",
			ephemeralPorts,
		},
		{ // a static pod
			"kube-system_coredns-x7_5f2d7c0b9a1e4d38b6c2f0a1e9d8c7b6",
			"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5f2d7c0b9a1e4d38b6c2f0a1e9d8c7b6.slice/cri-containerd-" + id + ".scope",
			func(*guest) (*load, error) { return tracked() },
		},
	} {
		container := exec.Command("/proc/self/exe", workMount, "/") // it is never told to mount
		container.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		w, err := startWorker(container)
		if err != nil {
			return nil, err
		}
		processes = append(processes, w)
		pid := container.Process.Pid
		cgroup := filepath.Join(root, pod.cgroup)
		if err := errors.Join(os.MkdirAll(filepath.Join(logs, pod.log), 0o755), os.MkdirAll(cgroup, 0o755)); err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(cgroup, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return nil, err
		}
		in, err := inside(pid)
		if err != nil {
			return nil, err
		}
		l, err := loadInside(in, func() (*load, error) { return pod.prepare(g) })
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return &load{
		step: func(n int) (refused string, err error) {
			for _, l := range all {
				r, err := l.step(n)
				if err != nil {
					return "", err
				}
				refused = cmp.Or(refused, r)
			}
			return refused, nil
		},
		release: func() (err error) {
			for _, l := range all {
				if l.release != nil {
					err = errors.Join(err, l.release())
				}
			}
			for _, w := range processes {
				err = errors.Join(err, w.stop())
			}
			return err
		},
	}, nil
}
