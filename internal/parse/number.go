package parse

// Number is a value that may be absent: a kernel without the field, or a file that this
// user may not read, leaves the zero Number, and nothing is exported.
type Number struct {
	Value   float64
	Present bool
	// bad is set if a kernel file has the field, but no number in it.
	bad bool
}

// Of returns a Number that is present.
func Of[T int | uint64 | uint32 | float64](v T) Number {
	return Number{Value: float64(v), Present: true}
}

// Times scales a number, for instance from pages to bytes.
func (n Number) Times(factor float64) Number {
	n.Value *= factor
	return n
}

// Minus subtracts numbers. The result is absent if one of them is.
func (n Number) Minus(others ...Number) Number {
	for _, o := range others {
		n.Value -= o.Value
		n.Present = n.Present && o.Present
	}
	return n
}

// Plus adds numbers. The result is absent if one of them is.
func (n Number) Plus(o Number) Number {
	return Number{Value: n.Value + o.Value, Present: n.Present && o.Present}
}

// OrZero returns the number, or 0 if it is absent: for a term that does not exist on
// kernels without the field.
func (n Number) OrZero() Number {
	if !n.Present {
		return Number{Present: !n.bad}
	}
	return n
}

// Unreadable returns a Number for a field that a kernel file has without a number in it.
func Unreadable() Number { return Number{bad: true} }

// IsUnreadable reports whether a kernel file has the field without a number in it, or
// should have the field. The error of the file has reported that.
func (n Number) IsUnreadable() bool { return n.bad }

// IsMissing reports whether a kernel file does not have the field at all.
func (n Number) IsMissing() bool { return !n.Present && !n.bad }

// parse sets the number to a count, from 0 to 2^63-1. After an error it is absent. If a
// file has a field twice, the first one counts.
func (n *Number) parse(text []byte) error {
	if n.Present || n.bad {
		return nil
	}
	v, err := Count(text)
	if err != nil {
		n.bad = true
		return err
	}
	*n = Of(v)
	return nil
}

// parseCounter is like parse, for a counter that the kernel keeps as unsigned: from 0 to
// 2^64-1.
func (n *Number) parseCounter(text []byte) error {
	if n.Present || n.bad {
		return nil
	}
	v, err := Uint(text, 10)
	if err != nil {
		n.bad = true
		return err
	}
	*n = Of(v)
	return nil
}
