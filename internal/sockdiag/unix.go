package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnixNotSupported means that this kernel has no sock_diag for unix sockets, or that
// its module is not loaded and was not loaded on demand.
var ErrUnixNotSupported = errors.New("this kernel does not have sock_diag for unix sockets (try: modprobe unix_diag)")

// A UnixSocket is a listening unix socket as the kernel reports it (struct unix_diag_msg
// of include/uapi/linux/unix_diag.h, Linux 3.3).
type UnixSocket struct {
	Inode uint32
	// Name is its path, or a zero byte and the name if it is abstract. It may contain any
	// bytes. It is empty for a socket without a name.
	Name []byte
	// Queue is the number of connections that wait to be accepted, Backlog the maximum of
	// that number (UNIX_DIAG_RQLEN).
	Queue, Backlog uint32
}

// String returns the name of the socket in the format of ss: with a leading @ if it is
// abstract, and its inode if it has no name.
func (s *UnixSocket) String() string {
	switch {
	case len(s.Name) == 0:
		return "inode/" + strconv.FormatUint(uint64(s.Inode), 10)
	case s.Name[0] == 0:
		return "@" + string(s.Name[1:])
	default:
		name := s.Name
		for len(name) > 1 && name[len(name)-1] == 0 { // a path may end with zero bytes
			name = name[:len(name)-1]
		}
		return string(name)
	}
}

// A UnixVisitor receives the unix sockets of a walk, as a Visitor does.
type UnixVisitor interface {
	Reset()
	VisitUnix(s *UnixSocket)
}

// Sizes and numbers of struct unix_diag_req and unix_diag_msg.
const (
	sizeofUnixReq = 24
	sizeofUnixMsg = 16

	showName       = 1  // UDIAG_SHOW_NAME
	showQueue      = 16 // UDIAG_SHOW_RQLEN
	attrUnixName   = 0  // UNIX_DIAG_NAME
	attrUnixQueue  = 4  // UNIX_DIAG_RQLEN
	offsetUnixShow = 12
)

// WalkUnix visits every listening unix socket, in one pass over the kernel's table. It
// returns the same errors as Walk, but ErrUnixNotSupported instead of ErrNotSupported.
func (c *Client) WalkUnix(ctx context.Context, v UnixVisitor) error {
	if c.once {
		defer c.Close()
	}
	b := make([]byte, sizeofUnixReq)
	b[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(b[4:], uint32(MaskOf(Listen)))
	binary.NativeEndian.PutUint32(b[offsetUnixShow:], showName|showQueue)
	m := netlink.Message{Header: netlink.Header{Type: typeByFamily, Flags: netlink.Request | netlink.Dump}, Data: b}
	var s UnixSocket
	visit := func(payload []byte) error {
		known, err := decodeUnix(payload, &s)
		if known && err == nil {
			v.VisitUnix(&s)
		}
		return err
	}
	v.Reset()
	err := c.dump(ctx, m, visit)
	if errors.Is(err, errInterrupted) || errors.Is(err, unix.ENOBUFS) {
		v.Reset()
		err = c.dump(ctx, m, visit)
	}
	if isRefused(err) {
		err = ErrUnixNotSupported
	}
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	return nil
}

// decodeUnix reads the payload of one message into s. known is false for a socket that
// does not listen; a kernel that does not know the filter sends those too.
func decodeUnix(b []byte, s *UnixSocket) (known bool, err error) {
	if len(b) < sizeofUnixMsg {
		return false, errShort
	}
	known = b[0] == unix.AF_UNIX && State(b[2]) == Listen
	*s = UnixSocket{Inode: binary.NativeEndian.Uint32(b[4:])}
	for b = b[sizeofUnixMsg:]; len(b) >= sizeofAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < sizeofAttr || size > len(b) {
			return false, errShort
		}
		value := b[sizeofAttr:size]
		switch binary.NativeEndian.Uint16(b[2:]) {
		case attrUnixName:
			s.Name = value
		case attrUnixQueue:
			if len(value) >= 8 {
				s.Queue, s.Backlog = binary.NativeEndian.Uint32(value), binary.NativeEndian.Uint32(value[4:])
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return known, nil
}
