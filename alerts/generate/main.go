// Command generate writes the alert bundle, with the changes of a configuration file:
//
//	go run ./alerts/generate -config=alerts.yml -dir=rules
//	go run ./alerts/generate -config=alerts.yml -format=prometheusrule -namespace=monitoring -label=release=prometheus
//
// The file has the fields of alerts.Config; they are described in docs/alerts.md.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/alerts"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	config := flags.String("config", "", "file with changes (YAML)")
	format := flags.String("format", "files", "files (plain rule files in -dir), prometheusrule (an object of the Prometheus operator) or json (the data of the chart and the mixin, without a configuration)")
	dir := flags.String("dir", "", "directory for -format=files")
	path := flags.String("out", "", "file for the other formats, standard output if empty")
	object := alerts.Object{Labels: map[string]string{}}
	flags.StringVar(&object.Name, "name", "sockpressure", "name of the object")
	flags.StringVar(&object.Namespace, "namespace", "", "namespace of the object")
	flags.Func("label", "a label of the object, key=value; may be repeated (the operator selects rules by labels)", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want key=value")
		}
		object.Labels[key] = value
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}

	var c alerts.Config
	if *config != "" {
		text, err := os.ReadFile(*config)
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict(text, &c); err != nil {
			return fmt.Errorf("%s: %w", *config, err)
		}
	}
	all := alerts.Groups()
	groups, err := c.Apply(all)
	if err != nil {
		return fmt.Errorf("%s: %w", *config, err)
	}

	var b bytes.Buffer
	switch *format {
	case "files":
		if *dir == "" {
			return errors.New("-format=files needs -dir")
		}
		if err := os.MkdirAll(*dir, 0o755); err != nil {
			return err
		}
		for name, text := range alerts.Files(groups) {
			if err := os.WriteFile(filepath.Join(*dir, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	case "prometheusrule":
		if err := object.Write(&b, groups); err != nil {
			return err
		}
	case "json":
		if *config != "" {
			return errors.New("-format=json takes no configuration: the chart and the mixin apply theirs")
		}
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(map[string]any{"runbookURL": alerts.DefaultRunbookURL, "groups": all}); err != nil {
			return err
		}
	default:
		return fmt.Errorf("-format=%s: want files, prometheusrule or json", *format)
	}
	if *path != "" {
		return os.WriteFile(*path, b.Bytes(), 0o644)
	}
	_, err = out.Write(b.Bytes())
	return err
}
