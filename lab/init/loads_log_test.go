package main

import (
	"slices"
	"testing"
)

// TestForged expects a line to be forged for everything that the exporter waits for.
func TestForged(t *testing.T) {
	for _, line := range logLines() {
		if !slices.ContainsFunc(forged(), line.Matches) {
			t.Errorf("no line of %s is forged", line.Message)
		}
	}
}
