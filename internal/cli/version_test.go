package cli

import (
	"runtime/debug"
	"testing"
)

// TestBuilt checks the version and the date of each kind of build that Go records: from a tag,
// from a commit, from one with changes, by go install, and without a repository.
func TestBuilt(t *testing.T) {
	for _, c := range []struct{ module, time, version, date string }{
		{"v0.1.0", "2026-01-31T23:30:00+02:00", "0.1.0", "20260131-21:30:00"},
		{"v0.1.1-0.20260131213000-03563b94fbbb+dirty", "2026-01-31T21:30:00Z", "0.1.1-0.20260131213000-03563b94fbbb+dirty", "20260131-21:30:00"},
		{"v0.1.0", "", "0.1.0", ""},
		{"(devel)", "", "(devel)", ""},
		{"(devel)", "yesterday", "(devel)", ""},
		{"", "", "(devel)", ""},
	} {
		info := &debug.BuildInfo{
			Main:     debug.Module{Version: c.module},
			Settings: []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.time", Value: c.time}},
		}
		if version, date := built(info); version != c.version || date != c.date {
			t.Errorf("%s of %q: %q of %q, want %q of %q", c.module, c.time, version, date, c.version, c.date)
		}
	}
}
