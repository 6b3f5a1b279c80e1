package ctnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
)

// Names of include/uapi/linux/netfilter/nfnetlink_conntrack.h (Linux 3.5).
const (
	// typeGetStatsCPU is NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU.
	typeGetStatsCPU netlink.HeaderType = 1<<8 | 4

	attrInvalid       = 4  // CTA_STATS_INVALID
	attrInsertFailed  = 9  // CTA_STATS_INSERT_FAILED
	attrDrop          = 10 // CTA_STATS_DROP
	attrEarlyDrop     = 11 // CTA_STATS_EARLY_DROP
	attrSearchRestart = 13 // CTA_STATS_SEARCH_RESTART
)

// sizeofNfgenmsg is the size of struct nfgenmsg: family, version, resource id.
const sizeofNfgenmsg = 4

// Counter is a counter of one CPU since its network namespace was created, modulo 2^32.
type Counter struct {
	Value uint32
	// Present is false if this kernel does not have the counter.
	Present bool
}

// CPU is the statistics of one CPU, of struct ip_conntrack_stat.
type CPU struct {
	ID uint16
	// Drop is packets dropped because their connection could not be tracked, EarlyDrop
	// connections evicted to make room, InsertFailed connections that could not be
	// inserted into the table, Invalid packets that belong to no connection, and
	// SearchRestart lookups that were restarted.
	Drop, EarlyDrop, InsertFailed, Invalid, SearchRestart Counter
}

// request returns a request for the statistics of every CPU: a struct nfgenmsg of any
// family.
func request() netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: typeGetStatsCPU, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, sizeofNfgenmsg),
	}
}

// decode decodes a message of the reply to a request.
func decode(request, m netlink.Message) (CPU, error) {
	if err := netlink.Validate(request, []netlink.Message{m}); err != nil {
		return CPU{}, err
	}
	// Every message of a dump has the flag. Without it, the end of the dump cannot be
	// known.
	if m.Header.Type != typeGetStatsCPU || m.Header.Flags&netlink.Multi == 0 {
		return CPU{}, fmt.Errorf("message of type %d with flags %#x", m.Header.Type, uint16(m.Header.Flags))
	}
	return parse(m.Data)
}

// parse parses the statistics of one CPU: a struct nfgenmsg, whose resource id is the
// CPU, and attributes of 32 bits, big-endian like the resource id.
func parse(b []byte) (CPU, error) {
	if len(b) < sizeofNfgenmsg {
		return CPU{}, errors.New("message is truncated")
	}
	cpu := CPU{ID: binary.BigEndian.Uint16(b[2:])}
	attributes, err := netlink.NewAttributeDecoder(b[sizeofNfgenmsg:])
	if err != nil {
		return CPU{}, fmt.Errorf("CPU %d: %w", cpu.ID, err)
	}
	attributes.ByteOrder = binary.BigEndian
	for attributes.Next() {
		var counter *Counter
		switch attributes.Type() {
		case attrInvalid:
			counter = &cpu.Invalid
		case attrInsertFailed:
			counter = &cpu.InsertFailed
		case attrDrop:
			counter = &cpu.Drop
		case attrEarlyDrop:
			counter = &cpu.EarlyDrop
		case attrSearchRestart:
			counter = &cpu.SearchRestart
		default:
			continue
		}
		*counter = Counter{attributes.Uint32(), true}
	}
	if err := attributes.Err(); err != nil {
		return CPU{}, fmt.Errorf("CPU %d: %w", cpu.ID, err)
	}
	return cpu, nil
}
