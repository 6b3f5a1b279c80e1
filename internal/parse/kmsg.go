package parse

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// Record is one record of /dev/kmsg (Linux 3.5).
type Record struct {
	// Facility is 0 for what the kernel wrote. Records from user space have another one,
	// whatever facility their writer specifies.
	Facility int
	Sequence uint64
	// Time is the time since boot, by the clock of the kernel's log, which stops while
	// the machine sleeps.
	Time time.Duration
	// Text is a part of the parsed bytes. Bytes that cannot be printed are encoded in it
	// as \x and two digits.
	Text []byte
}

// Kmsg parses what one read of /dev/kmsg returns: facility and level, sequence number,
// microseconds, flags, and perhaps more, separated by commas; a semicolon and the text;
// then lines about the device, which begin with a blank.
func Kmsg(b []byte, path string) (Record, error) {
	head, text, ok := bytes.Cut(b, []byte{';'})
	if !ok {
		return Record{}, FieldError(path, "text", ErrMissing)
	}
	var n [3]uint64
	for i, name := range [...]string{"priority", "sequence number", "time"} {
		field, rest, ok := bytes.Cut(head, []byte{','})
		if !ok {
			return Record{}, FieldError(path, "flags", ErrMissing)
		}
		var err error
		if n[i], err = Count(field); err != nil {
			return Record{}, FieldError(path, name, err)
		}
		head = rest
	}
	const levels = 8
	if n[0] >= 1<<31 || n[2] > uint64(1<<63-1)/uint64(time.Microsecond) {
		return Record{}, FieldError(path, "priority or time", fmt.Errorf("%d,%d is too large", n[0], n[2]))
	}
	text, _, _ = bytes.Cut(text, []byte{'\n'})
	return Record{
		Facility: int(n[0] / levels),
		Sequence: n[1],
		Time:     time.Duration(n[2]) * time.Microsecond,
		Text:     text,
	}, nil
}

// Suppressed returns how many lines the kernel's rate limit suppressed, if the text of a
// record reports that: "net_ratelimit: 12 callbacks suppressed".
func Suppressed(text []byte) (uint64, bool) {
	text, ok := bytes.CutSuffix(text, []byte(" callbacks suppressed"))
	if !ok {
		return 0, false
	}
	name, count, ok := bytes.Cut(text, []byte(": "))
	if !ok || bytes.ContainsAny(name, " ") {
		return 0, false
	}
	n, err := Count(count)
	return n, err == nil
}

// OOMReport is the summary that the OOM killer logs before the line about the process
// that it kills (Linux 5.0), unless its rate limit suppresses it.
type OOMReport struct {
	// Constraint is what ran out: NONE for the machine, CPUSET, MEMORY_POLICY, MEMCG.
	Constraint string
	// Cgroup is the cgroup of the process.
	Cgroup string
	PID    int
}

// OOM parses the summary: "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=...,
// task_memcg=/a,task=name,pid=1,uid=0". ok is false for any other text.
func OOM(text []byte) (r OOMReport, ok bool) {
	rest, ok := bytes.CutPrefix(text, []byte("oom-kill:constraint=CONSTRAINT_"))
	if !ok {
		return OOMReport{}, false
	}
	constraint, rest, _ := bytes.Cut(rest, []byte{','})
	r.Constraint = string(constraint)
	// From the end, because users choose the names of cgroups and processes.
	at := bytes.LastIndex(rest, []byte(",pid="))
	if at < 0 {
		return OOMReport{}, false
	}
	pid, _, _ := bytes.Cut(rest[at+len(",pid="):], []byte{','})
	var err error
	if r.PID, err = strconv.Atoi(string(pid)); err != nil {
		return OOMReport{}, false
	}
	if _, cgroup, ok := bytes.Cut(rest[:at], []byte("task_memcg=")); ok {
		cgroup, _, _ = bytes.Cut(cgroup, []byte(",task="))
		r.Cgroup = string(cgroup)
	}
	return r, true
}
