package alerts

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Files returns the rule files, by name.
func Files(groups []OutputGroup) map[string]string {
	files := map[string]string{}
	for _, g := range groups {
		name := g.file + ".rules.yml"
		if files[name] == "" {
			files[name] = "# Generated from alerts/*.go. To update: go generate ./alerts\ngroups:\n"
		} else {
			files[name] += "\n"
		}
		var b strings.Builder
		writeGroup(&b, g, "  ", nil)
		files[name] += b.String()
	}
	return files
}

// Object is a PrometheusRule of the Prometheus operator.
type Object struct {
	Name, Namespace string
	Labels          map[string]string
}

// Write writes the object with all groups. Above each rule it writes the rule's path, for
// JSON patches.
func (o Object) Write(w io.Writer, groups []OutputGroup) error {
	var b strings.Builder
	b.WriteString("# Generated from alerts/*.go. To update: go generate ./alerts\n")
	fmt.Fprintf(&b, "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: %s\n", o.Name)
	if o.Namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", o.Namespace)
	}
	if len(o.Labels) > 0 {
		b.WriteString("  labels:\n")
		for _, key := range slices.Sorted(maps.Keys(o.Labels)) {
			fmt.Fprintf(&b, "    %s: %q\n", key, o.Labels[key])
		}
	}
	b.WriteString("spec:\n  groups:\n")
	for i, g := range groups {
		writeGroup(&b, g, "    ", &i)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeGroup(b *strings.Builder, g OutputGroup, indent string, index *int) {
	writeComment(b, g.comment, indent)
	fmt.Fprintf(b, "%s- name: %s\n%s  interval: %s\n%s  rules:\n", indent, g.Name, indent, g.Interval, indent)
	indent += "    "
	for i, r := range g.Rules {
		if i > 0 {
			b.WriteString("\n")
		}
		writeComment(b, r.comment, indent)
		if index != nil {
			fmt.Fprintf(b, "%s# /spec/groups/%d/rules/%d\n", indent, *index, i)
		}
		if r.Record != "" {
			fmt.Fprintf(b, "%s- record: %s\n", indent, r.Record)
		} else {
			fmt.Fprintf(b, "%s- alert: %s\n", indent, r.Alert)
		}
		rest := indent + "  "
		fmt.Fprintf(b, "%sexpr: |-\n", rest)
		for line := range strings.SplitSeq(r.Expr, "\n") {
			fmt.Fprintf(b, "%s  %s\n", rest, line)
		}
		if r.For != "" {
			fmt.Fprintf(b, "%sfor: %s\n", rest, r.For)
		}
		if r.KeepFiringFor != "" {
			fmt.Fprintf(b, "%skeep_firing_for: %s\n", rest, r.KeepFiringFor)
		}
		writeMap(b, "labels", r.Labels, rest)
		writeMap(b, "annotations", r.Annotations, rest)
	}
}

func writeMap(b *strings.Builder, name string, m map[string]string, indent string) {
	if len(m) == 0 {
		return
	}
	fmt.Fprintf(b, "%s%s:\n", indent, name)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		switch {
		case strings.HasPrefix(m[key], "http") || plain(m[key]):
			fmt.Fprintf(b, "%s  %s: %s\n", indent, key, m[key])
		case len(m[key]) > 60 && !strings.Contains(m[key], "\n"):
			fmt.Fprintf(b, "%s  %s: >-\n%s", indent, key, wrap(m[key], indent+"    ", 112))
		default:
			fmt.Fprintf(b, "%s  %s: '%s'\n", indent, key, strings.ReplaceAll(m[key], "'", "''"))
		}
	}
}

// plain reports whether a text needs no quotes in YAML.
func plain(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return s != "" && strings.Trim(s, letters+"_0123456789") == "" && strings.Contains(letters, s[:1]) &&
		!slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(s))
}

func writeComment(b *strings.Builder, text, indent string) {
	if text == "" {
		return
	}
	for paragraph := range strings.SplitSeq(text, "\n") {
		if strings.TrimSpace(paragraph) == "" {
			b.WriteString(indent + "#\n")
			continue
		}
		b.WriteString(wrap(paragraph, indent+"# ", 112))
	}
}

// wrap breaks a text into lines of at most the given width, if its words allow that.
func wrap(text, indent string, width int) string {
	if len(indent)+len(text) <= width {
		return indent + text + "\n"
	}
	var b strings.Builder
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(indent)+len(line)+1+len(word) > width {
			b.WriteString(indent + line + "\n")
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return b.String() + indent + line + "\n"
}
