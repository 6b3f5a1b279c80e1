// Command schemas writes JSON schemas of the Kubernetes objects in deploy/ in the form
// that kubeconform expects: a file for each kind, in which an object has only the fields
// that it declares. The schemas are made from the OpenAPI definitions of the API server
// and the CustomResourceDefinitions of the Prometheus operator, which are downloaded as
// Go modules.
//
//	go run ./deploy/schemas -out dir
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v2"
)

// origin is a module, and its files with schemas. It is not part of a program, so go.mod
// does not list it.
type origin struct {
	module string
	files  []string
}

func origins() []origin {
	const crd = "example/prometheus-operator-crd/monitoring.coreos.com_"
	return []origin{
		{"k8s.io/kubernetes@v1.34.1", []string{"api/openapi-spec/swagger.json"}},
		{"github.com/prometheus-operator/prometheus-operator@v0.85.0", []string{crd + "podmonitors.yaml", crd + "prometheusrules.yaml"}},
	}
}

func main() {
	out := flag.String("out", ".", "the directory for the schemas")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "schemas: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if err := run(*out); err != nil {
		fmt.Fprintf(os.Stderr, "schemas: %v\n", err)
		os.Exit(1)
	}
}

func run(out string) error {
	for _, o := range origins() {
		dir, err := download(o.module)
		if err != nil {
			return fmt.Errorf("%s: %w", o.module, err)
		}
		for _, file := range o.files {
			if err := write(filepath.Join(dir, file), out); err != nil {
				return fmt.Errorf("%s: %s: %w", o.module, file, err)
			}
		}
	}
	return nil
}

// download returns the directory of a module in the module cache.
func download(module string) (string, error) {
	// Run outside any module, so that no go.mod is changed.
	nowhere, err := os.MkdirTemp("", "schemas")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(nowhere)
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = nowhere
	answer, failed := cmd.Output()
	var m struct{ Dir, Error string }
	if err := json.Unmarshal(answer, &m); err != nil {
		return "", errors.Join(failed, err)
	}
	if m.Error != "" {
		return "", errors.New(m.Error)
	}
	return m.Dir, failed
}

type kind struct{ Group, Version, Kind string }

// write writes the schemas of a file into a directory.
func write(file, out string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// JSON is YAML too.
	var source struct {
		Definitions map[string]any
		Spec        struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPI map[string]any `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &source); err != nil {
		return err
	}
	schemas := map[kind]map[string]any{}
	for _, version := range source.Spec.Versions {
		if version.Schema.OpenAPI != nil {
			schemas[kind{source.Spec.Group, version.Name, source.Spec.Names.Kind}] = strict(version.Schema.OpenAPI).(map[string]any)
		}
	}
	if source.Definitions != nil {
		builtIn(source.Definitions, schemas)
	}
	if len(schemas) == 0 {
		return errors.New("neither the definitions of an API nor a CustomResourceDefinition with a schema")
	}
	for k, schema := range schemas {
		text, err := json.Marshal(schema)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, k.file()), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// file returns the file name for kubeconform's template
// {{.ResourceKind}}{{.KindSuffix}}.json.
func (k kind) file() string {
	name := k.Kind
	if k.Group != "" {
		group, _, _ := strings.Cut(k.Group, ".")
		name += "-" + group
	}
	return strings.ToLower(name + "-" + k.Version + ".json")
}

// builtIn adds the kinds in the definitions, each with everything that it refers to.
func builtIn(source map[string]any, schemas map[kind]map[string]any) {
	definitions := map[string]any{}
	for name, definition := range source {
		definitions[name] = strict(definition)
	}
	// "cpu: 1" is as valid as "cpu: '1'", but the definitions do not allow it.
	definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = map[string]any{"type": []string{"number", "string"}}
	for name, definition := range definitions {
		kinds, _ := definition.(map[string]any)["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 {
			continue // Part of other objects, or of many APIs.
		}
		k := kinds[0].(map[string]any)
		used := map[string]any{}
		collect(definitions[name], definitions, used)
		schema := map[string]any{"definitions": used}
		maps.Copy(schema, definition.(map[string]any))
		schemas[kind{fmt.Sprint(k["group"]), fmt.Sprint(k["version"]), fmt.Sprint(k["kind"])}] = schema
	}
}

// collect adds the definitions that value refers to to used.
func collect(value any, definitions, used map[string]any) {
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			collect(item, definitions, used)
		}
	case map[string]any:
		for _, field := range v {
			collect(field, definitions, used)
		}
		reference, _ := v["$ref"].(string)
		name := strings.TrimPrefix(reference, "#/definitions/")
		if _, seen := used[name]; name != "" && !seen {
			used[name] = definitions[name]
			collect(definitions[name], definitions, used)
		}
	}
}

// strict converts YAML to JSON, and closes every object that declares its fields.
func strict(value any) any {
	switch v := value.(type) {
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = strict(item)
		}
		return list
	case map[string]any:
		return closed(v)
	case map[any]any:
		object := map[string]any{}
		for name, field := range v {
			object[fmt.Sprint(name)] = field
		}
		return closed(object)
	}
	return value
}

func closed(source map[string]any) map[string]any {
	if source["x-kubernetes-int-or-string"] == true || source["format"] == "int-or-string" {
		return map[string]any{"type": []string{"integer", "string"}}
	}
	object := map[string]any{}
	for name, field := range source {
		object[name] = strict(field)
	}
	_, declared := object["properties"].(map[string]any)
	if _, open := object["additionalProperties"]; declared && !open && object["type"] == "object" {
		object["additionalProperties"] = false
	}
	return object
}
