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

// A UnixSocket is what the kernel tells of a unix socket that listens (struct
// unix_diag_msg of include/uapi/linux/unix_diag.h, Linux 3.3).
type UnixSocket struct {
	Inode uint32
	// Name is its path, or of an abstract one a zero byte and the name; any bytes. It is
	// empty for a socket without a name.
	Name []byte
	// Queue is the connections that wait to be accepted, Backlog how many may
	// (UNIX_DIAG_RQLEN).
	Queue, Backlog uint32
}

// String is the name of the socket as ss writes it: of an abstract one with an @ before it,
// and of one without a name its inode.
func (s *UnixSocket) String() string {
	switch {
	case len(s.Name) == 0:
		return "inode/" + strconv.FormatUint(uint64(s.Inode), 10)
	case s.Name[0] == 0:
		return "@" + string(s.Name[1:])
	default:
		name := s.Name
		for len(name) > 1 && name[len(name)-1] == 0 { // a path may end with zeros
			name = name[:len(name)-1]
		}
		return string(name)
	}
}

// A UnixVisitor takes the unix sockets of a walk, as a Visitor does.
type UnixVisitor interface {
	Reset()
	VisitUnix(s *UnixSocket)
}

// Of struct unix_diag_req and unix_diag_msg.
const (
	sizeofUnixReq = 24
	sizeofUnixMsg = 16

	showName       = 1  // UDIAG_SHOW_NAME
	showQueue      = 16 // UDIAG_SHOW_RQLEN
	attrUnixName   = 0  // UNIX_DIAG_NAME
	attrUnixQueue  = 4  // UNIX_DIAG_RQLEN
	offsetUnixShow = 12
)

// WalkUnix visits every unix socket that listens, in one pass over the kernel's table. Its
// errors are those of Walk, with ErrUnixNotSupported.
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
// does not listen, which a kernel that does not know the filter sends too.
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
