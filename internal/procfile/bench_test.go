package procfile

import "testing"

// BenchmarkProcfileRead reads a short and a long file of the running kernel repeatedly,
// without an allocation once the buffer has grown.
func BenchmarkProcfileRead(b *testing.B) {
	for _, name := range []string{"sys/fs/file-nr", "net/netstat", "zoneinfo"} {
		b.Run(name, func(b *testing.B) {
			f := New("/proc/"+name, Options{})
			defer f.Close()
			if _, err := f.Read(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
