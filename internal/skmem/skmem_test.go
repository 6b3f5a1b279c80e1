package skmem

import (
	"os"
	"testing"
)

// TestUnit checks that the unit of socket memory is the page size or 4096 bytes, and that a
// socket with one datagram reserves one unit.
func TestUnit(t *testing.T) {
	unit, err := Unit()
	if err != nil {
		t.Fatal(err)
	}
	if page := os.Getpagesize(); unit != page && unit != 4096 {
		t.Errorf("%d bytes, with pages of %d", unit, page)
	}
	reserved, err := reservedForOne()
	if err != nil {
		t.Fatal(err)
	}
	if reserved != unit {
		t.Errorf("a socket with one datagram has %d bytes, want %d", reserved, unit)
	}
}
