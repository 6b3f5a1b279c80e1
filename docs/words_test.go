package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// phrases lists unidiomatic patterns that must not be used again, with plain forms of each.
var phrases = []struct {
	pattern string
	plain   string
}{
	{`\b(says|tells) whether\b`, "reports whether"},
	{`\bfor want of\b`, "for lack of, because ... was exhausted"},
	{`\bstands? in (for|the|its|no|none|this)\b`, "is in, replaces"},
	{`\b([Ll]imits?|that|it|they) (is|are|was|were) met\b`, "is reached"},
	{`\b(has|had) met (its|the|a)\b`, "has reached"},
	{`(?i)\bmoved by\b`, "set by, raised by"},
	{`(?i)\bmend(s|ed|ing)?\b`, "fix"},
	{`\b(nineteen|nine|ninety-\w+) (twentieths|tenths|hundredths)\b`, "95 %, 90 %, 97 %"},
	{`\b(a|within a) (twentieth|hundredth|fiftieth)\b`, "5 %, 1 %, 2 %"},
	{`\bone in fifty\b`, "2 %"},
	{`\bno thing to\b`, "not something to"},
	{`\bfor ever\b`, "forever"},
	{`\b[Tt]ime-outs?\b`, "timeout"},
	{`\bat wish\b`, "optionally"},
	{`\bmany a (host|healthy|program|machine)\b`, "many hosts"},
	{`\bbe (it|they) (a|an|the|only|nobody)`, "even if it is"},
	{`\bcut short\b`, "truncated"},
	{`\banew\b`, "again"},
	{`\bcontrol groups?\b`, "cgroup"},
	{`\bWho (wants|does not|reads|opens|is not)\b`, "To ..., a client that ..."},
	{`\bpart of life\b`, "normal"},
	{`(^|[^e])\sis no (path|error|failure|walk|number|socket|page|sysctl|counter|snapshot)\b`, "is not a"},
}

// TestWords checks that no document, text or comment contains one of phrases.
func TestWords(t *testing.T) {
	const root = ".."
	texts := []string{".go", ".md", ".tmpl", ".html", ".txt", ".yml", ".yaml", ".service", ".conf", ".css", ".libsonnet", ".tpl"}
	skip := []string{".git", ".github", "dashboards", "testdata", "recordings", "node_modules", "dist"}
	var patterns []*regexp.Regexp
	for _, p := range phrases {
		patterns = append(patterns, regexp.MustCompile(p.pattern))
	}
	read := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains(skip, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || d.Name() == "words_test.go" || !slices.Contains(texts, filepath.Ext(path)) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		read++
		for n, line := range strings.Split(string(b), "\n") {
			for i, p := range patterns {
				if found := p.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: rather %s", strings.TrimPrefix(path, root+"/"), n+1, found, phrases[i].plain)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 100 {
		t.Errorf("%d files were read: is %s the repository?", read, root)
	}
}
