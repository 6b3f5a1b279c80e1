// Command configmap writes the dashboards as ConfigMaps, one each, for a cluster
// where a sidecar of Grafana collects them by the label grafana_dashboard:
//
//	go run ./dashboards/configmap -namespace monitoring | kubectl apply -f -
//
// The placeholders ({{ }}) in them are Grafana's: a Helm chart has to quote them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "configmap:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("configmap", flag.ContinueOnError)
	dir := flags.String("dir", "dashboards", "the directory of the dashboards")
	namespace := flags.String("namespace", "", "namespace of the objects")
	labels := map[string]string{"grafana_dashboard": "1"}
	flags.Func("label", "a label of the objects, key=value; may be repeated", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want key=value")
		}
		labels[key] = value
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(*dir, "*.json"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no dashboards in %s", *dir)
	}

	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := filepath.Base(file)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\n", strings.TrimSuffix(name, ".json"))
		if *namespace != "" {
			fmt.Fprintf(&b, "  namespace: %s\n", *namespace)
		}
		b.WriteString("  labels:\n")
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			fmt.Fprintf(&b, "    %s: %q\n", key, labels[key])
		}
		fmt.Fprintf(&b, "data:\n  %s: |\n", name)
		for line := range strings.Lines(string(text)) {
			b.WriteString("    " + line)
		}
	}
	_, err = io.WriteString(out, b.String())
	return err
}
