package collector

import "github.com/sockpressure/sockpressure_exporter/internal/parse"

// Number is a value that may be absent: a kernel without the field, or a file that this
// user may not read, leaves the zero Number, and nothing is exported.
type Number = parse.Number

// number returns a Number that is present.
func number[T int | uint64 | uint32 | float64](v T) Number { return parse.Of(v) }
