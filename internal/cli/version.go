package cli

import (
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/common/version"
)

// SetVersion sets the version fields that the linker flags of a release (see Makefile)
// did not set, as in a build from source, to what Go recorded about the build. It writes
// variables of prometheus/common/version, so it must be called once, before Run.
func SetVersion() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	v, date := built(info)
	if version.Version == "" {
		version.Version = v
	}
	if version.BuildDate == "" {
		version.BuildDate = date
	}
}

// buildDate is the layout of a date in Makefile.
const buildDate = "20060102-15:04:05"

// built returns the version and the date of a build, in the form of a release: without
// the v of Go's version, and with the date of the commit. If Go did not record them, the
// version is "(devel)" and the date empty.
func built(info *debug.BuildInfo) (version, date string) {
	version = strings.TrimPrefix(info.Main.Version, "v")
	if version == "" {
		version = "(devel)"
	}
	for _, s := range info.Settings {
		if s.Key != "vcs.time" {
			continue
		}
		if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
			date = t.UTC().Format(buildDate)
		}
	}
	return version, date
}

// versionInfo returns the version in a few words.
func versionInfo() string {
	return fmt.Sprintf("%s, revision %s", version.Version, version.GetRevision())
}
