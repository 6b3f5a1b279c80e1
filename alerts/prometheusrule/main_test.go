package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// TestObject compares the groups of the object with those of the files.
func TestObject(t *testing.T) {
	var b strings.Builder
	if err := run([]string{"-dir", "..", "-namespace", "monitoring", "-label", "release=prometheus", "-label", "a=true"}, &b); err != nil {
		t.Fatal(err)
	}
	var object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name, Namespace string
			Labels          map[string]string
		}
		Spec struct{ Groups []any }
	}
	if err := yaml.UnmarshalStrict([]byte(b.String()), &object); err != nil {
		t.Fatal(err)
	}
	if object.APIVersion != "monitoring.coreos.com/v1" || object.Kind != "PrometheusRule" ||
		object.Metadata.Name != "sockpressure" || object.Metadata.Namespace != "monitoring" ||
		!reflect.DeepEqual(object.Metadata.Labels, map[string]string{"release": "prometheus", "a": "true"}) {
		t.Errorf("%+v", object)
	}

	files, err := filepath.Glob("../*.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var want []any
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rules struct{ Groups []any }
		if err := yaml.UnmarshalStrict(text, &rules); err != nil {
			t.Fatal(err)
		}
		want = append(want, rules.Groups...)
	}
	if len(want) == 0 || !reflect.DeepEqual(object.Spec.Groups, want) {
		t.Errorf("%d groups differ from those of the files, %d", len(object.Spec.Groups), len(want))
	}
}

func TestErrors(t *testing.T) {
	for name, args := range map[string][]string{
		"no files":   {"-dir", t.TempDir()},
		"no flag":    {"-nonsense"},
		"bad label":  {"-dir", "..", "-label", "release"},
		"not groups": {"-dir", broken(t)},
	} {
		if err := run(args, new(strings.Builder)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func broken(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.rules.yml"), []byte("rules:\n  - a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
