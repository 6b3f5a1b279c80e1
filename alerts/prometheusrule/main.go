// Command prometheusrule writes the rule files of alerts/ as one PrometheusRule
// object (monitoring.coreos.com/v1), for a cluster with the Prometheus operator:
//
//	go run ./alerts/prometheusrule -namespace monitoring -label release=prometheus
//
// The object holds the same text, comments included, further to the right. Its
// templates ({{ }}) are Prometheus's: a Helm chart has to quote them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
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
		fmt.Fprintln(os.Stderr, "prometheusrule:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("prometheusrule", flag.ContinueOnError)
	dir := flags.String("dir", "alerts", "the directory of the rule files")
	name := flags.String("name", "sockpressure", "name of the object")
	namespace := flags.String("namespace", "", "namespace of the object")
	labels := map[string]string{}
	flags.Func("label", "a label of the object, key=value; may be repeated (the operator selects rules by labels)", func(s string) error {
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
	files, err := filepath.Glob(filepath.Join(*dir, "*.rules.yml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no rule files in %s", *dir)
	}

	var b strings.Builder
	b.WriteString("apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n")
	fmt.Fprintf(&b, "  name: %s\n", *name)
	if *namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", *namespace)
	}
	if len(labels) > 0 {
		b.WriteString("  labels:\n")
		for _, key := range sortedKeys(labels) {
			fmt.Fprintf(&b, "    %s: %q\n", key, labels[key])
		}
	}
	b.WriteString("spec:\n  groups:\n")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := appendGroups(&b, string(text)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	_, err = io.WriteString(out, b.String())
	return err
}

// appendGroups writes a rule file below spec.groups. The file is comments, a line
// "groups:" and the list, so it only has to move by two columns.
func appendGroups(b *strings.Builder, text string) error {
	seen := false
	for line := range strings.Lines(text) {
		switch {
		case strings.TrimSpace(line) == "":
			b.WriteString("\n")
		case strings.HasPrefix(line, "#"):
			b.WriteString("    " + line)
		case line == "groups:\n" && !seen:
			seen = true
		case seen && strings.HasPrefix(line, "  "):
			b.WriteString("  " + line)
		default:
			return fmt.Errorf("unexpected line %q", line)
		}
	}
	if !seen {
		return errors.New("no groups")
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
