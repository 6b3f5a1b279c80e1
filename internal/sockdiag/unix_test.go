package sockdiag

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

// unixMessage returns the payload of a message about a unix socket.
func unixMessage(state State, inode uint32, name string, queue, backlog uint32) []byte {
	b := []byte{unix.AF_UNIX, unix.SOCK_STREAM, byte(state), 0}
	b = binary.NativeEndian.AppendUint32(b, inode)
	b = append(b, make([]byte, 8)...)
	attr := func(typ uint16, value []byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, typ)
		b = append(b, value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	if name != "" {
		attr(attrUnixName, []byte(name))
	}
	attr(99, []byte{1}) // an attribute of a later kernel
	attr(attrUnixQueue, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, queue), backlog))
	return b
}

// TestDecodeUnix checks that the name and the queue are decoded, whatever other attributes
// there are.
func TestDecodeUnix(t *testing.T) {
	var s UnixSocket
	b := unixMessage(Listen, 7, "/run/a.sock", 3, 128)
	known, err := decodeUnix(b, &s)
	if !known || err != nil || s.Inode != 7 || string(s.Name) != "/run/a.sock" || s.Queue != 3 || s.Backlog != 128 {
		t.Errorf("%+v, %t, %v", s, known, err)
	}
	if known, err = decodeUnix(unixMessage(Listen, 8, "", 0, 1), &s); !known || err != nil || s.Name != nil || s.Backlog != 1 {
		t.Errorf("without a name: %+v, %t, %v", s, known, err)
	}
	if known, err = decodeUnix(unixMessage(Established, 9, "x", 1, 1), &s); known || err != nil {
		t.Errorf("of another state: %t, %v", known, err)
	}
	if _, err = decodeUnix(b[:10], &s); !errors.Is(err, errShort) {
		t.Errorf("truncated: %v", err)
	}
	binary.NativeEndian.PutUint16(b[sizeofUnixMsg:], 500)
	if _, err = decodeUnix(b, &s); !errors.Is(err, errShort) {
		t.Errorf("an attribute that is longer than the message: %v", err)
	}
}

func FuzzDecodeUnix(f *testing.F) {
	f.Add(unixMessage(Listen, 7, "/run/a.sock", 3, 128))
	f.Add(unixMessage(Listen, 7, "\x00abstract", 0, 0)[:20])
	recorded, err := os.ReadFile("../../testdata/sock_diag/unix.bin")
	if err != nil {
		f.Fatal(err)
	}
	for b := recorded; len(b) >= sizeofHeader; {
		size := int(binary.NativeEndian.Uint32(b))
		f.Add(b[sizeofHeader:size])
		b = b[(size+3)&^3:]
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s UnixSocket
		if known, err := decodeUnix(b, &s); err != nil && known {
			t.Error("known although there is an error")
		}
		if len(s.Name) > len(b) {
			t.Error("a name that is longer than the message")
		}
	})
}

type unixSeen map[string]UnixSocket

func (v unixSeen) Reset()                  { clear(v) }
func (v unixSeen) VisitUnix(s *UnixSocket) { v[string(s.Name)] = *s }

// TestWalkUnix checks that listeners of the running kernel are returned with the number of
// waiting connections.
func TestWalkUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c := New(Dial)
	defer c.Close()
	seen := unixSeen{}
	if err := c.WalkUnix(t.Context(), seen); errors.Is(err, ErrUnixNotSupported) {
		needs.Skip(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	if s := seen[path+"\x00"]; s.Queue != 2 && seen[path].Queue != 2 {
		t.Errorf("%+v of %d sockets", s, len(seen))
	}
}
