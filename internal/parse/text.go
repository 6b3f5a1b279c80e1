package parse

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NextLine cuts the first line off b. ok is false when b is empty.
func NextLine(b []byte) (line, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, nil, false
	}
	line, rest, _ = bytes.Cut(b, []byte{'\n'})
	return line, rest, true
}

// NextField cuts the first field off a line; fields are separated by blanks and tabs. ok
// is false when there is none left.
func NextField(b []byte) (field, rest []byte, ok bool) {
	i := 0
	for i < len(b) && isBlank(b[i]) {
		i++
	}
	if i == len(b) {
		return nil, nil, false
	}
	j := i
	for j < len(b) && !isBlank(b[j]) {
		j++
	}
	return b[i:j], b[j:], true
}

// CountFields returns the number of fields in a line.
func CountFields(b []byte) int {
	n := 0
	for {
		_, rest, ok := NextField(b)
		if !ok {
			return n
		}
		b = rest
		n++
	}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

// Uint parses an unsigned 64-bit number in the given base. The error quotes the text.
func Uint(b []byte, base int) (uint64, error) {
	// No 64-bit number has more digits, and garbage stays out of the log.
	if len(b) > 24 {
		return 0, fmt.Errorf("%q... is not a number", b[:24])
	}
	v, err := strconv.ParseUint(string(b), base, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", b)
	}
	return v, nil
}

// Count parses a number that the kernel keeps in a signed type and that cannot be
// negative: from 0 to 2^63-1. The error quotes the text.
func Count(b []byte) (uint64, error) {
	v, err := Uint(b, 10)
	if err == nil && v > math.MaxInt64 || err != nil && len(b) > 1 && b[0] == '-' && isNumber(b[1:]) {
		return 0, fmt.Errorf("%s is not a count", b)
	}
	return v, err
}

func isNumber(b []byte) bool {
	_, err := Uint(b, 10)
	return err == nil
}

// Printable makes text safe to show in a terminal, a browser or a message: it replaces
// what is not UTF-8, and what would move the cursor, give commands or change the
// direction of writing, by question marks. Programs can give themselves names of any
// bytes.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if ' ' <= r && r <= '~' { // nearly every one
			return r
		}
		if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}
