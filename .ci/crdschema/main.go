// Command crdschema takes the JSON schema out of a CustomResourceDefinition, as
// kubeconform wants it: an object has no other fields than those that it declares.
//
//	go run ./.ci/crdschema <definition.yaml >schema.json
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v2"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "crdschema:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var definition struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPI map[string]any `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(b, &definition); err != nil {
		return err
	}
	versions := definition.Spec.Versions
	if len(versions) != 1 || versions[0].Schema.OpenAPI == nil {
		return errors.New("not a definition with one version and its schema")
	}
	schema := map[string]any{}
	for name, value := range versions[0].Schema.OpenAPI {
		schema[name] = strict(value)
	}
	schema["additionalProperties"] = false
	return json.NewEncoder(out).Encode(schema)
}

// strict makes JSON of YAML, and closes every object that declares its fields.
func strict(value any) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = strict(v[i])
		}
		return v
	case map[any]any:
		object := map[string]any{}
		for name, field := range v {
			object[fmt.Sprint(name)] = strict(field)
		}
		if object["x-kubernetes-int-or-string"] == true {
			return map[string]any{"type": []string{"integer", "string"}}
		}
		_, declared := object["properties"].(map[string]any)
		if _, open := object["additionalProperties"]; declared && !open && object["type"] == "object" {
			object["additionalProperties"] = false
		}
		return object
	}
	return value
}
