package collector

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// livePods creates the cgroups of the given number of pods, each with two containers, which is
// three cgroups per pod.
func livePods(tb testing.TB, pods int) {
	tb.Helper()
	needs.Check(tb, needs.Root)
	tree, err := cgroup.Memory("/sys/fs/cgroup")
	if err != nil {
		needs.Skip(tb, "a hierarchy of cgroups that accounts memory: "+err.Error())
	}
	var made []string
	tb.Cleanup(func() {
		for len(made) > 0 {
			last := len(made) - 1
			if err := os.Remove(made[last]); err != nil {
				tb.Error(err)
			}
			made = made[:last]
		}
	})
	mkdir := func(dir string, divided bool) {
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			made = append(made, dir)
		}
		if err == nil && divided && tree.Version == 2 {
			err = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0)
		}
		if err == nil && !divided {
			limit := map[int]string{1: "memory.limit_in_bytes", 2: "memory.max"}[tree.Version]
			err = os.WriteFile(filepath.Join(dir, limit), []byte("268435456"), 0)
		}
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			needs.Skip(tb, "cgroups that root may make: "+err.Error())
		} else if err != nil {
			tb.Fatal(err)
		}
	}
	top := filepath.Join(tree.Root, "sockpressure-"+strings.ToLower(rand.Text()[:8]))
	kube := filepath.Join(top, "kubepods")
	mkdir(top, true)
	mkdir(kube, true)
	for i := range pods {
		pod := filepath.Join(kube, fmt.Sprintf("pod%032x", i))
		mkdir(pod, true)
		for _, container := range []string{"a", "b"} {
			mkdir(filepath.Join(pod, strings.Repeat(container, 64)), false)
		}
	}
}

// BenchmarkCgroups reads this machine's cgroups, including hundreds or thousands of pods.
func BenchmarkCgroups(b *testing.B) {
	for _, pods := range []int{100, 667} {
		b.Run(strconv.Itoa(3*pods), func(b *testing.B) {
			livePods(b, pods)
			read := cgroupSpec().open(scope(b, running()))
			for range 2 { // the first readings read more
				if _, err := read(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			for b.Loop() {
				if _, err := read(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N)/1e6, "CPU-ms/op")
		})
	}
}
