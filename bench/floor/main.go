// Command floor does the minimum that a walk over TCP sockets requires: it sends the
// request and discards the answer. It prints how long that took:
//
//	go run ./bench/floor [--runs=5] [--established]
package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	runs := flag.Int("runs", 5, "walks")
	established := flag.Bool("established", false, "ask for established and TIME_WAIT sockets too")
	flag.Parse()
	states := uint32(0xffe) &^ (1<<1 | 1<<6)
	if *established {
		states = 0xffe
	}
	var took []time.Duration
	for range *runs {
		began := time.Now()
		n, err := walk(states)
		if err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		took = append(took, time.Since(began))
		fmt.Printf("%.6f s, %d bytes\n", took[len(took)-1].Seconds(), n)
	}
	slices.Sort(took)
	fmt.Printf("median %.6f s\n", took[len(took)/2].Seconds())
}

// walk sends one TCPDIAG_GETSOCK request (struct inet_diag_req) and reads the answer,
// looking only for its end. It returns the answer's size.
func walk(states uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	request := make([]byte, 16+60)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], 18)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[16+52:], states)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 32<<10)
	for total := 0; ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return 0, err
		}
		total += n
		switch binary.NativeEndian.Uint16(buf[4:]) {
		case unix.NLMSG_DONE:
			return total, nil
		case unix.NLMSG_ERROR:
			return 0, unix.Errno(-int32(binary.NativeEndian.Uint32(buf[16:])))
		}
	}
}
