package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	opNop    = 0
	sizeofOp = 4 // struct inet_diag_bc_op
)

// bytecode is a program as the kernel receives it.
type bytecode []byte

func (b bytecode) code() byte { return b[0] }
func (b bytecode) yes() int   { return int(b[1]) }
func (b bytecode) no() int    { return int(binary.NativeEndian.Uint16(b[2:])) }

// operand returns the port that the operation compares with.
func (b bytecode) operand() uint16 { return uint16(b[sizeofOp:].no()) }

// audit models inet_diag_bc_audit (net/ipv4/inet_diag.c), which rejects with EINVAL a program
// that might not end or might read out of bounds. It returns the reason.
func (b bytecode) audit() error {
	if len(b) < sizeofOp {
		return errors.New("shorter than an operation")
	}
	rest := b
	for len(rest) > 0 {
		if len(rest) < sizeofOp {
			return errors.New("the last operation is truncated")
		}
		at := fmt.Sprintf("at %d", len(b)-len(rest))
		least := sizeofOp
		switch rest.code() {
		case opNop, opJump:
		case opSourceGE, opSourceLE:
			least += sizeofOp
			if len(rest) < least {
				return fmt.Errorf("%s: no room for a port", at)
			}
		default:
			return fmt.Errorf("%s: operation %d is unknown, or not of this model", at, rest.code())
		}
		// A jump may go to the end of the program, or four bytes beyond it.
		beyond := func(jump int) bool { return jump < least || jump > len(rest)+4 || jump%4 != 0 }
		if rest.code() != opNop {
			if beyond(rest.no()) {
				return fmt.Errorf("%s: no jumps by %d of %d", at, rest.no(), len(rest))
			}
			if rest.no() < len(rest) && !b.begins(len(b)-len(rest)+rest.no()) {
				return fmt.Errorf("%s: no jumps into an operation", at)
			}
		}
		if beyond(rest.yes()) {
			return fmt.Errorf("%s: yes jumps by %d of %d", at, rest.yes(), len(rest))
		}
		if rest.yes() > len(rest) {
			return fmt.Errorf("%s: the last operation extends beyond the end of the program", at)
		}
		rest = rest[rest.yes():]
	}
	return nil
}

// begins models valid_cc: it reports whether an operation begins at an offset that is reached
// by following the yes jumps from the start.
func (b bytecode) begins(offset int) bool {
	for at := 0; at <= offset; {
		if at == offset {
			return true
		}
		yes := b[at:].yes()
		if yes < sizeofOp || yes%4 != 0 {
			return false
		}
		at += yes
	}
	return false
}

// accepts models inet_diag_bc_run for a socket with a source port.
func (b bytecode) accepts(source uint16) bool {
	left := len(b)
	for left > 0 {
		op := b[len(b)-left:]
		yes := true
		switch op.code() {
		case opJump:
			yes = false
		case opSourceGE:
			yes = source >= op.operand()
		case opSourceLE:
			yes = source <= op.operand()
		}
		if yes {
			left -= op.yes()
		} else {
			left -= op.no()
		}
	}
	return left == 0
}

// portRanges returns a set of ranges made from any bytes, with at most as many ranges as may
// be sent.
func portRanges(b []byte) []PortRange {
	var ends []uint16
	for ; len(b) >= 2; b = b[2:] {
		ends = append(ends, binary.BigEndian.Uint16(b))
	}
	slices.Sort(ends)
	var ranges []PortRange
	for len(ends) > 0 && len(ranges) < MaxRanges {
		p := PortRange{Low: ends[0], High: ends[0]}
		ends = ends[1:]
		if len(ends) > 0 {
			p.High = ends[0]
			ends = ends[1:]
		}
		// The end of one range must not be the start of the next.
		for len(ends) > 0 && ends[0] == p.High {
			ends = ends[1:]
		}
		ranges = append(ranges, p)
	}
	return ranges
}

// FuzzBytecode checks that the kernel accepts the program for any set of ports, and that it
// selects exactly these ports.
func FuzzBytecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0xff, 0xff})
	f.Add([]byte{0x80, 0, 0xc3, 0x82, 0xc3, 0x84, 0xee, 0x47})
	f.Add([]byte{0, 1, 0, 1, 0, 2, 0, 3, 0xff, 0xff})
	var most []byte
	for i := range 2 * MaxRanges {
		most = binary.BigEndian.AppendUint16(most, uint16(100*i))
	}
	f.Add(most)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Request{States: AllStates, Ports: portRanges(b)}
		attribute := r.byFamily(unix.AF_INET).Data[8+sizeofID:]
		if len(r.Ports) == 0 {
			if len(attribute) != 0 {
				t.Fatalf("a filter without ports: %x", attribute)
			}
			return
		}
		if size := int(binary.NativeEndian.Uint16(attribute)); size != len(attribute) || binary.NativeEndian.Uint16(attribute[2:]) != attrBytecode {
			t.Fatalf("an attribute of %d bytes: %x", len(attribute), attribute[:4])
		}
		program := bytecode(attribute[4:])
		if err := program.audit(); err != nil {
			t.Fatalf("%v: EINVAL: %v", r.Ports, err)
		}
		// The result changes only at ports that the ranges or the program compare with, so it
		// is sufficient to check these and their neighbours.
		ports := []uint16{0, math.MaxUint16}
		near := func(port uint16) { ports = append(ports, port-1, port, port+1) }
		for _, p := range r.Ports {
			near(p.Low)
			near(p.High)
		}
		for op := program; len(op) > 0; op = op[op.yes():] {
			if op.code() == opSourceGE || op.code() == opSourceLE {
				near(op.operand())
			}
		}
		slices.Sort(ports)
		for _, port := range slices.Compact(ports) {
			if got, want := program.accepts(port), r.selects(&Socket{State: Established, SourcePort: port}); got != want {
				t.Fatalf("%v: port %d: the kernel's result is %t, want %t", r.Ports, port, got, want)
			}
		}
	})
}

// TestAudit checks that the model rejects programs that the kernel rejects.
func TestAudit(t *testing.T) {
	op := func(code, yes byte, no uint16) []byte {
		return binary.NativeEndian.AppendUint16([]byte{code, yes}, no)
	}
	for name, program := range map[string][]byte{
		"empty":                         {},
		"an unknown operation":          op(200, 4, 4),
		"a jump that stands still":      op(opJump, 4, 0),
		"a jump far behind the end":     op(opJump, 4, 12),
		"a jump that is not aligned":    op(opJump, 4, 6),
		"yes stands still":              op(opNop, 0, 0),
		"no room for a port":            op(opSourceGE, 4, 4),
		"a jump into an operation":      slices.Concat(op(opJump, 4, 8), op(opSourceGE, 8, 8), op(0, 0, 80)),
		"yes ends behind the end":       slices.Concat(op(opSourceGE, 12, 8), op(0, 0, 80)),
		"a comparison without its port": slices.Concat(op(opJump, 4, 4), op(opSourceLE, 8, 8)),
	} {
		if bytecode(program).audit() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := bytecode(slices.Concat(op(opSourceGE, 8, 12), op(0, 0, 80))).audit(); err != nil {
		t.Errorf("one port: %v", err)
	}
}
