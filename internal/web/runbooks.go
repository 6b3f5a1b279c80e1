package web

import (
	"bytes"
	"html/template"
	"net/http"
	"strings"
	"sync"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"

	"github.com/sockpressure/sockpressure_exporter/alerts"
	"github.com/sockpressure/sockpressure_exporter/docs"
)

// runbooksPath is the path of the runbooks of the running version.
const runbooksPath = "/runbooks"

// netnsRunbook is the fragment of the section on limits of network namespaces.
const netnsRunbook = "sockpressurenetnsnearlimit"

// runbook returns the fragment of the section of a limit, empty if it has none.
func runbook(resource string) string { return strings.ToLower(alerts.Runbook(resource)) }

// runbooks serves docs/runbooks.md, for hosts that cannot reach the internet.
func runbooks(c Config) http.Handler {
	style := newStyle()
	page := sync.OnceValues(func() ([]byte, error) { return runbooksPage(c, style) })
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, err := page()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		toRead(w)
		style.header(w.Header())
		_, _ = w.Write(body)
	})
}

// heading is an entry of the contents.
type heading struct {
	Level    int
	ID, Text string
}

// runbooksPage makes the page.
func runbooksPage(c Config, style style) ([]byte, error) {
	md := goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	root := md.Parser().Parse(text.NewReader(docs.Runbooks))
	var contents []heading
	err := ast.Walk(root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if h, ok := n.(*ast.Heading); ok && entering && h.Level > 1 {
			if id, ok := h.AttributeString("id"); ok {
				contents = append(contents, heading{h.Level, string(id.([]byte)), string(h.Lines().Value(docs.Runbooks))})
			}
		}
		// Other documents are not served.
		if link, ok := n.(*ast.Link); ok && entering {
			if to := string(link.Destination); !strings.HasPrefix(to, "#") && !strings.Contains(to, "://") {
				link.Destination = []byte(project + "/blob/main/docs/" + to)
			}
		}
		return ast.WalkContinue, nil
	})
	if err != nil {
		return nil, err
	}
	var text, page bytes.Buffer
	if err := md.Renderer().Render(&text, docs.Runbooks, root); err != nil {
		return nil, err
	}
	err = parse().ExecuteTemplate(&page, "runbooks.html", map[string]any{
		"Style": style.css, "Host": c.Host, "Version": c.Version, "Project": project,
		"Contents": contents,
		"Text":     template.HTML(text.String()), // our own, without HTML in it
	})
	return page.Bytes(), err
}
