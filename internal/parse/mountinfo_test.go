package parse

import (
	"slices"
	"testing"
)

// TestNetnsMounts checks that each namespace is returned once, with its path unescaped.
func TestNetnsMounts(t *testing.T) {
	const mountinfo = `21 26 0:20 / /proc rw,relatime - proc proc rw
98 31 0:4 net:[4026532256] /run/netns/blue rw shared:51 - nsfs nsfs rw
99 24 0:4 net:[4026532256] /var/run/netns/blue rw shared:51 - nsfs nsfs rw
100 31 0:4 net:[4026532311] /run/netns/a\040b\134 rw shared:52 - nsfs nsfs rw
101 31 0:4 mnt:[4026532312] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
102 31 8:1 /net:[1] /home/net:[1] rw - ext4 /dev/sda1 rw
103 31 0:4 net:[x] /run/netns/x rw - nsfs nsfs rw
104 31 0:4 net:[7]
105 31 0:4 net:[4026532400] /run/docker/netns/0c1f rw - nsfs nsfs rw
`
	want := []NetnsMount{
		{4026532256, "/run/netns/blue"}, {4026532311, `/run/netns/a b\`}, {4026532400, "/run/docker/netns/0c1f"},
	}
	if got := NetnsMounts([]byte(mountinfo), 10); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := NetnsMounts([]byte(mountinfo), 1); len(got) != 1 {
		t.Errorf("%d of one", len(got))
	}
}

func FuzzNetnsMounts(f *testing.F) {
	f.Add([]byte("98 31 0:4 net:[4026532256] /run/netns/a\\040b rw - nsfs nsfs rw\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range NetnsMounts(b, 3) {
			if len(m.Path) > len(b) {
				t.Errorf("%q", m.Path)
			}
		}
	})
}
