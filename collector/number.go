package collector

// Number is a value that may be absent: a kernel without the field, or a file
// that this user may not read, leaves the zero Number, and nothing is exported.
type Number struct {
	Value   float64
	Present bool
	// bad is set where a kernel file has the field and no number in it.
	bad bool
}

// number returns a Number that is present.
func number[T int | uint64 | uint32 | float64](v T) Number {
	return Number{Value: float64(v), Present: true}
}

// times scales a number, for instance from pages to bytes.
func (n Number) times(factor float64) Number {
	n.Value *= factor
	return n
}

// minus subtracts numbers, and is absent where one of them is.
func (n Number) minus(others ...Number) Number {
	for _, o := range others {
		n.Value -= o.Value
		n.Present = n.Present && o.Present
	}
	return n
}

// plus adds numbers, and is absent where one of them is.
func (n Number) plus(o Number) Number {
	return Number{Value: n.Value + o.Value, Present: n.Present && o.Present}
}

// orZero is the number, or 0 where it is absent: for a term that a kernel without
// the field does not have.
func (n Number) orZero() Number {
	if !n.Present {
		return Number{Present: !n.bad}
	}
	return n
}

// larger returns the larger of two numbers that is present.
func larger(a, b Number) Number {
	if !a.Present || b.Present && b.Value > a.Value {
		return b
	}
	return a
}
