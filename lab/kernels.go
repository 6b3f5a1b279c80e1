package main

import (
	"strings"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// architecture describes how QEMU emulates a machine, and what a kernel needs there.
type architecture struct {
	debian, goarch string // the names that Debian and Go use
	emulator       string
	machine        []string // the emulator's options
	console        string
	parameters     string // extra kernel parameters
	// lowMemory is the kernel parameter that leaves little of 880 MiB as low memory,
	// empty on 64-bit machines, which have no high memory.
	lowMemory string
	// noHugePages is set if the kernel, or the machine as QEMU emulates it, has none.
	noHugePages bool
}

// kernel is Debian's newest kernel of a version and flavour in a suite.
type kernel struct {
	version, flavour string // the beginning and the end of uname -r
	suite            string
	architecture
	page int // size in KiB
	// ci are the scenarios that CI runs on it: "all", a comma-separated list, or none.
	ci string
}

// everything selects all kernels or all scenarios.
const everything = "all"

// kernels returns every kernel of the lab.
func kernels() []kernel {
	amd64 := architecture{
		debian: "amd64", goarch: "amd64", emulator: "qemu-system-x86_64", machine: []string{"-M", "q35", "-cpu", "Nehalem"},
		// With the time stamp counter, reading the clock does not exit to the emulator. On
		// a busy machine the kernel's check of the timer fails, and it panics.
		console: "ttyS0", parameters: "tsc=reliable clocksource=tsc no_timer_check",
	}
	i386 := amd64
	i386.debian, i386.goarch, i386.lowMemory = "i386", "386", "highmem=680M"
	arm64 := architecture{
		debian: "arm64", goarch: "arm64", emulator: "qemu-system-aarch64", console: "ttyAMA0",
		// The architected algorithm of pointer authentication is slow to emulate.
		machine: []string{"-M", "virt", "-cpu", "max,pauth-impdef=on"},
	}
	armhf := architecture{
		debian: "armhf", goarch: "arm", emulator: "qemu-system-arm", console: "ttyAMA0",
		machine: []string{"-M", "virt,highmem=off", "-cpu", "cortex-a15"}, lowMemory: "vmalloc=800M", noHugePages: true,
	}
	s390x := architecture{
		debian: "s390x", goarch: "s390x", emulator: "qemu-system-s390x", console: "ttysclp0",
		machine: []string{"-M", "s390-ccw-virtio", "-cpu", "max"}, noHugePages: true,
	}
	ppc64el := architecture{
		debian: "ppc64el", goarch: "ppc64le", emulator: "qemu-system-ppc64", console: "hvc0",
		// Software emulation lacks these mitigations, and QEMU refuses to start with them on.
		machine: []string{"-M", "pseries,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off", "-cpu", "power9"},
	}
	riscv64 := architecture{
		debian: "riscv64", goarch: "riscv64", emulator: "qemu-system-riscv64", console: "ttyS0",
		machine: []string{"-M", "virt"},
	}
	// CI has no time for all scenarios on every kernel: the oldest, the newest and the
	// 32-bit kernel run the rest.
	const between = "conntrack_entries,pods,tcp_memory,accept_queue,memory,log_forged,plan"
	return []kernel{
		{"5.10", "amd64", "bullseye", amd64, 4, everything},
		{"6.1", "amd64", "bookworm", amd64, 4, between},
		{"6.12", "amd64", "trixie", amd64, 4, between},
		{"6.18", "amd64", "trixie-backports", amd64, 4, ""},
		{"7.2", "amd64", "trixie-backports", amd64, 4, everything},
		{"7.3", "amd64", "trixie-backports", amd64, 4, ""},
		{"6.1", "686-pae", "bookworm", i386, 4, everything},
		{"6.1", "arm64", "bookworm", arm64, 4, ""},
		{"6.12", "arm64", "trixie", arm64, 4, "tcp_memory"},
		{"6.12", "arm64-16k", "trixie", arm64, 16, ""},
		{"7.3", "arm64", "trixie-backports", arm64, 4, ""},
		{"6.12", "armmp", "bookworm-backports", armhf, 4, ""},
		{"6.12", "s390x", "bookworm-backports", s390x, 4, "tcp_memory"},
		{"7.2", "s390x", "sid", s390x, 4, ""},
		{"6.12", "powerpc64le-64k", "bookworm-backports", ppc64el, 64, "tcp_memory"},
		{"7.2", "riscv64", "sid", riscv64, 4, ""},
	}
}

// name returns the kernel's name in flags, recordings and tables.
func (k kernel) name() string {
	if k.flavour == "amd64" {
		return k.version
	}
	return k.version + "-" + k.flavour
}

// runs reports whether the scenario applies to the kernel.
func (k kernel) runs(s scenario.Scenario) bool { return !s.HighMemory || k.lowMemory != "" }

// whole reports whether all of the kernel's recordings are kept.
func (k kernel) whole() bool { return k.ci != "" && (k.goarch == "amd64" || k.goarch == "386") }

// records reports whether the scenario's recording is kept. Of kernels whose recordings
// are not all kept only two are, because the tests of the alerts evaluate every
// recording. None of pods is kept, because no warning time is promised for their limits.
func (k kernel) records(s scenario.Scenario) bool {
	return len(s.Netns) == 0 && !s.Unrecorded && (k.whole() || s.Name == "idle" || s.Name == "tcp_memory")
}

// before reports whether the kernel is older than version.
func (k kernel) before(version string) bool { return compareVersions(k.version, version) < 0 }

// lacks reports whether the metric does not exist on the kernel, or in an idle guest.
func (k kernel) lacks(metric string) bool {
	switch metric {
	case "udp_memory_errors_total", "udp6_memory_errors_total":
		return k.before("5.11")
	case "memory_zfs_arc_bytes", "kernel_message_last_timestamp_seconds":
		return true
	case "memory_hugetlb_bytes":
		return k.noHugePages
	case "memory_low_total_bytes", "memory_low_free_bytes", "memory_high_total_bytes", "memory_high_free_bytes":
		return k.lowMemory == ""
	case "netns_namespaces", "netns_unreadable", "netns_refusals_total",
		"cgroup_groups", "cgroup_unreadable", "cgroup_ooms_all_total", "cgroup_oom_kills_all_total":
		return false
	}
	// Metrics of network namespaces other than the host's and of cgroups, which a guest
	// does not have.
	return strings.HasPrefix(metric, "netns_") || strings.HasPrefix(metric, "cgroup_")
}
