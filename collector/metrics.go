package collector

//go:generate go test . -run=^TestReference$ -update

// Metrics returns every metric that is exported: those of the set itself, then those of
// each collector, in the order of docs/metrics.md.
func Metrics() []MetricInfo {
	var all []MetricInfo
	for _, m := range healthRows().rows() {
		all = append(all, *m)
	}
	for _, s := range Specs() {
		all = append(all, s.Metrics...)
	}
	return all
}
