package owner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func mkdir(t *testing.T, elem ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(elem...), 0o700); err != nil {
		t.Fatal(err)
	}
}

// find returns the result of Find as one string.
func find(t *testing.T, p *Pods, uid string) string {
	t.Helper()
	namespace, name, ok, err := p.Find(uid)
	if err != nil {
		t.Fatal(err)
	}
	if ok != (namespace != "" && name != "") {
		t.Fatalf("%s: %q, %q, %t", uid, namespace, name, ok)
	}
	return namespace + "/" + name
}

func TestOwner(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "kube-system_etcd-node1_"+static)
	p := NewPods(dir)
	for cgroup, want := range map[string]Owner{
		"0::/kubepods/pod<static>/<id>": {"pod/kube-system/etcd-node1", "kube-system", "etcd-node1"},
		// A pod without a directory has no owner, whatever it runs in.
		"0::/kubepods/pod<uid>/<id>":             {},
		"0::/docker/<other>/kubepods/pod<uid>/x": {},
		"0::/docker/<id>":                        {Name: "docker/7dea796eb5d6"},
		"0::/":                                   {},
	} {
		if got, err := p.Owner([]byte(expand(cgroup) + "\n")); got != want || err != nil {
			t.Errorf("%s: %+v, %v, want %+v", cgroup, got, err, want)
		}
	}
}

// TestPods checks that the directory is listed for an unknown UID, but not again within 5
// seconds.
func TestPods(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods")
	synctest.Test(t, func(t *testing.T) {
		p := NewPods(dir)
		expect := func(uid, want string) {
			t.Helper()
			if got := find(t, p, uid); got != want {
				t.Errorf("%s: %s, want %s", uid, got, want)
			}
		}
		expect(uid, "/") // no directory
		web, etcd := filepath.Join(dir, "default_web-1.a_"+uid), filepath.Join(dir, "kube-system_etcd_"+static)
		mkdir(t, web)
		expect(uid, "/")
		time.Sleep(listEvery)
		expect(uid, "default/web-1.a")

		mkdir(t, etcd)
		time.Sleep(listEvery - 1)
		expect(static, "/")
		time.Sleep(time.Nanosecond)
		if err := os.Remove(web); err != nil {
			t.Fatal(err)
		}
		expect(uid, "default/web-1.a") // still known, because nothing was listed
		expect(static, "kube-system/etcd")
		expect(uid, "/")

		// The directory cannot be listed: what is already known is kept.
		if err := os.Rename(dir, dir+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(listEvery)
		for range 2 {
			_, _, ok, err := p.Find(uid)
			if ok || err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("a file instead of the directory: %t, %v", ok, err)
			}
		}
		expect(static, "kube-system/etcd")
	})
}

// TestEntries checks that names that are not those of pods are ignored.
func TestEntries(t *testing.T) {
	const twice = "00000000000000000000000000000000"
	dir := t.TempDir()
	for _, name := range []string{
		"default_web_" + uid, "default_" + static, "__" + static, "a_b_c_" + static, "a_\xff_" + static, static,
		"a_b_" + twice, "a_c_" + twice, "b_b_" + twice, "a_b_x",
	} {
		mkdir(t, dir, name)
	}
	p := NewPods(dir)
	for uid, want := range map[string]string{uid: "default/web", static: "/", twice: "/", "x": "/", "": "/"} {
		if got := find(t, p, uid); got != want {
			t.Errorf("%q: %s, want %s", uid, got, want)
		}
	}
}

// TestMany checks that a directory with more entries than one read returns is read to its end,
// or up to the bound.
func TestMany(t *testing.T) {
	dir := t.TempDir()
	for i := range 2500 {
		mkdir(t, dir, fmt.Sprintf("a_b%d_%032x", i, i))
	}
	p := NewPods(dir)
	for i := range 2500 {
		if got, want := find(t, p, fmt.Sprintf("%032x", i)), fmt.Sprintf("a/b%d", i); got != want {
			t.Fatalf("%d: %s, want %s", i, got, want)
		}
	}
	if pods, err := list(dir, 1500); len(pods) != 1500 || err != nil {
		t.Errorf("%d pods, %v", len(pods), err)
	}
}
