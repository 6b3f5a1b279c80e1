package collector

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Names of include/uapi/linux/netfilter/nfnetlink_conntrack.h (Linux 3.5).
const (
	// ctnetlinkGetStatsCPU is NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU.
	ctnetlinkGetStatsCPU netlink.HeaderType = 1<<8 | 4

	ctaStatsInvalid       = 4
	ctaStatsInsertFailed  = 9
	ctaStatsDrop          = 10
	ctaStatsEarlyDrop     = 11
	ctaStatsSearchRestart = 13
)

// sizeofNfgenmsg is the size of struct nfgenmsg: family, version, resource id.
const sizeofNfgenmsg = 4

// conntrackNetlink reads the statistics of connection tracking from ctnetlink,
// for kernels that have no file of them. It needs CAP_NET_ADMIN.
type conntrackNetlink struct {
	dial func() (*netlink.Conn, error)
	conn *netlink.Conn
}

func dialNetfilter() (*netlink.Conn, error) { return netlink.Dial(unix.NETLINK_NETFILTER, nil) }

func newConntrackNetlink(dial func() (*netlink.Conn, error)) *conntrackNetlink {
	return &conntrackNetlink{dial: dial}
}

// read visits each counter of each CPU, a counter by its place in
// conntrackColumns. Where the kernel has no ctnetlink, or does not let us use
// it, there is nothing to visit and no error.
func (c *conntrackNetlink) read(ctx context.Context, visit func(cpu, counter int, v uint64)) error {
	messages, err := c.dump(ctx)
	if isRefusedByNetfilter(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ctnetlink statistics: %w", err)
	}
	for _, m := range messages {
		if err := parseConntrackStats(m.Data, visit); err != nil {
			return fmt.Errorf("ctnetlink statistics: %w", err)
		}
	}
	return nil
}

func (c *conntrackNetlink) dump(ctx context.Context) (_ []netlink.Message, err error) {
	if c.conn == nil {
		if c.conn, err = c.dial(); err != nil {
			c.conn = nil
			return nil, err
		}
	}
	defer func() {
		// A socket that got a refusal is as good as before, and may be the last.
		if err != nil && !isRefusedByNetfilter(err) {
			c.close()
		}
	}()
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return c.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ctnetlinkGetStatsCPU, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, sizeofNfgenmsg),
	})
}

func (c *conntrackNetlink) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// isRefusedByNetfilter says whether err means that there is no ctnetlink (not
// built in, its module not loaded, another namespace's), or no permission.
func isRefusedByNetfilter(err error) bool {
	for _, e := range []error{unix.EPERM, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return isAbsent(err)
}

// parseConntrackStats reads the statistics of one CPU: a struct nfgenmsg, whose
// resource id is the CPU, and attributes of 32 bits, big-endian like it.
func parseConntrackStats(b []byte, visit func(cpu, counter int, v uint64)) error {
	if len(b) < sizeofNfgenmsg {
		return errors.New("message is cut short")
	}
	cpu := int(binary.BigEndian.Uint16(b[2:]))
	attributes, err := netlink.NewAttributeDecoder(b[sizeofNfgenmsg:])
	if err != nil {
		return err
	}
	attributes.ByteOrder = binary.BigEndian
	var values [conntrackCounters]Number
	for attributes.Next() {
		var counter int
		switch attributes.Type() {
		case ctaStatsDrop:
			counter = conntrackDrop
		case ctaStatsEarlyDrop:
			counter = conntrackEarlyDrop
		case ctaStatsInsertFailed:
			counter = conntrackInsertFailed
		case ctaStatsInvalid:
			counter = conntrackInvalid
		case ctaStatsSearchRestart:
			counter = conntrackSearchRestart
		default:
			continue
		}
		values[counter] = number(attributes.Uint32())
	}
	if err := attributes.Err(); err != nil {
		return fmt.Errorf("CPU %d: %w", cpu, err)
	}
	for counter, n := range values {
		if n.Present {
			visit(cpu, counter, uint64(n.Value))
		}
	}
	return nil
}
