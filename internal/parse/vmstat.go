package parse

// OOMKills reads oom_kill of /proc/vmstat (mm/vmstat.c, Linux 4.13): the number of
// processes that the OOM killer has killed. It is absent on older kernels.
func OOMKills(b []byte, path string) (kills Number, err error) {
	err = numbersByName(b, path, map[string]*Number{"oom_kill": &kills})
	return kills, err
}
