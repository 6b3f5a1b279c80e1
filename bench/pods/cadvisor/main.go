// Command cadvisor reads the TCP statistics of processes' network namespaces with the
// functions of cAdvisor, for ../main.go. The arguments are the processes. For each line
// of standard input it reads all of them once, prints the statistics of the last few as
// JSON if the line asks for it, and then an empty line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strconv"

	"github.com/google/cadvisor/container"
	"github.com/google/cadvisor/container/libcontainer"
	"github.com/opencontainers/cgroups"
)

// noCgroup is the part of a cgroup that the handler needs for network statistics.
type noCgroup struct{ cgroups.Manager }

func (noCgroup) GetStats() (*cgroups.Stats, error) { return cgroups.NewStats(), nil }

func (noCgroup) Path(string) string { return "" }

func main() {
	// What --disable_metrics=... leaves enabled; both are disabled by default.
	metrics := container.MetricSet{container.NetworkTcpUsageMetrics: {}, container.NetworkAdvancedTcpUsageMetrics: {}}
	var handlers []*libcontainer.Handler
	for _, arg := range os.Args[1:] {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			panic(err)
		}
		handlers = append(handlers, libcontainer.NewHandler(noCgroup{}, "/", pid, metrics))
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		show, _ := strconv.Atoi(lines.Text())
		for i, h := range handlers {
			stats, err := h.GetStats()
			if err != nil {
				panic(err)
			}
			if i >= len(handlers)-show {
				fmt.Println(notZero(stats.Network.Tcp, stats.Network.TcpAdvanced))
			}
		}
		fmt.Println()
	}
}

// notZero returns the statistics that are not zero.
func notZero(stats ...any) string {
	counted := map[string]any{}
	for _, s := range stats {
		b, err := json.Marshal(s)
		if err == nil {
			err = json.Unmarshal(b, &counted)
		}
		if err != nil {
			panic(err)
		}
	}
	maps.DeleteFunc(counted, func(_ string, v any) bool { return v == 0.0 })
	b, _ := json.Marshal(counted)
	return string(b)
}
