package parse

// OOMKills reads oom_kill of /proc/vmstat (mm/vmstat.c, Linux 4.13): the processes that
// the OOM killer has ended. Other kernels do not have it.
func OOMKills(b []byte, path string) (kills Number, err error) {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, value, _ := NextField(line)
		if string(name) == "oom_kill" {
			value, _, _ = NextField(value)
			if err := kills.parseCounter(value); err != nil {
				p.Add(FieldError(path, "oom_kill", err))
			}
		}
	}
	return kills, p.Err()
}
