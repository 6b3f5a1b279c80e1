// Package skmem determines the unit in which the kernel counts socket memory.
package skmem

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Words of the array that SO_MEMINFO returns (include/uapi/linux/sock_diag.h, Linux
// 4.12): the bytes that are queued to be received, and those that the socket has reserved
// and not used.
const (
	rmemAlloc = 0
	fwdAlloc  = 4
	words     = 9
)

// Unit returns the unit, in bytes, in which the kernel counts the socket memory of
// /proc/net/sockstat: a page, or before Linux 6.0 SK_MEM_QUANTUM, which is 4096 whatever
// the page size (include/net/sock.h). On most machines both are the same, and Unit does
// not need to ask the kernel.
//
// The kernel assigns memory to a socket in that unit, so the unit shows in the memory of
// a UDP socket that has received one short datagram: its used and its reserved memory
// together are one unit. The version number would be less reliable, because distributions
// apply later changes to older kernels.
func Unit() (int, error) {
	const quantum = 4096
	page := os.Getpagesize()
	if page <= quantum {
		return page, nil
	}
	reserved, err := reservedForOne()
	if err != nil {
		return 0, fmt.Errorf("unit of socket memory: %w", err)
	}
	switch {
	case reserved%page == 0:
		return page, nil
	case reserved%quantum == 0:
		return quantum, nil
	}
	return 0, fmt.Errorf("unit of socket memory: a socket reserved %d bytes", reserved)
}

// reservedForOne sends one datagram over loopback and returns how much memory its
// receiver has, used or reserved.
func reservedForOne() (int, error) {
	var errs []error
	for _, to := range []unix.Sockaddr{
		&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Addr: [16]byte{15: 1}},
	} {
		n, err := reservedAt(to)
		if err == nil {
			return n, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}

func reservedAt(at unix.Sockaddr) (int, error) {
	family := unix.AF_INET
	if _, ok := at.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, at); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	// Loopback delivers before sendto returns, most of the time.
	if err := unix.Sendto(fd, []byte{0}, 0, self); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
	info, err := meminfo(fd)
	if err != nil {
		return 0, err
	}
	if info[rmemAlloc] == 0 {
		return 0, errors.New("a datagram to loopback did not arrive")
	}
	return int(info[rmemAlloc]) + int(info[fwdAlloc]), nil
}

// meminfo is getsockopt SO_MEMINFO, which no library provides.
func meminfo(fd int) (info [words]uint32, err error) {
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	runtime.KeepAlive(&info)
	if errno != 0 {
		return info, os.NewSyscallError("getsockopt SO_MEMINFO", errno)
	}
	if size < (fwdAlloc+1)*4 {
		return info, fmt.Errorf("SO_MEMINFO gave %d bytes", size)
	}
	return info, nil
}
