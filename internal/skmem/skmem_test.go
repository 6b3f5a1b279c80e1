package skmem

import (
	"os"
	"testing"
)

// TestUnit expects what the running kernel reserves for a socket to be a multiple
// of a page, which is what a page of 4096 bytes is on every kernel.
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
