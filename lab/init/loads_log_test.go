package main

import (
	"slices"
	"testing"
)

// TestForged checks that forged has a line for each of logLines.
func TestForged(t *testing.T) {
	for _, line := range logLines() {
		if !slices.ContainsFunc(forged(), line.Matches) {
			t.Errorf("no line of %s is forged", line.Message)
		}
	}
}
