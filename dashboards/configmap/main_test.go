package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// TestObjects compares what the objects hold with the files.
func TestObjects(t *testing.T) {
	var b strings.Builder
	if err := run([]string{"-dir", "..", "-namespace", "monitoring", "-label", "team=a"}, &b); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../*.json")
	if err != nil {
		t.Fatal(err)
	}
	documents := strings.Split(b.String(), "---\n")[1:]
	if len(documents) != len(files) || len(files) == 0 {
		t.Fatalf("%d objects of %d files", len(documents), len(files))
	}
	for i, file := range files {
		var object struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct {
				Name, Namespace string
				Labels          map[string]string
			}
			Data map[string]string
		}
		if err := yaml.UnmarshalStrict([]byte(documents[i]), &object); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		if object.APIVersion != "v1" || object.Kind != "ConfigMap" || object.Metadata.Name+".json" != name || object.Metadata.Namespace != "monitoring" ||
			!maps.Equal(object.Metadata.Labels, map[string]string{"grafana_dashboard": "1", "team": "a"}) ||
			!maps.Equal(object.Data, map[string]string{name: string(text)}) {
			t.Errorf("%s: %+v", file, object.Metadata)
		}
		// kubectl apply keeps the whole object once more, in an annotation of at most this.
		if len(documents[i]) > 256<<10 {
			t.Errorf("%s: %d bytes", file, len(documents[i]))
		}
	}
}

func TestErrors(t *testing.T) {
	for name, args := range map[string][]string{
		"no files":  {"-dir", t.TempDir()},
		"no flag":   {"-nonsense"},
		"bad label": {"-dir", "..", "-label", "team"},
	} {
		if err := run(args, new(strings.Builder)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
