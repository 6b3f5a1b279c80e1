package web

import (
	"bytes"
	"context"
	"embed"
	"html/template"
	"net/http"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

//go:embed status.html
var files embed.FS

// page is what status.html shows.
type page struct {
	TelemetryPath, Version string
	Limits                 []collector.LimitReading
	Results                []collector.Result
	Foreign                error
}

// status serves a page for people: every limit, the most saturated first.
func status(set *collector.Set, c Config) http.Handler {
	tmpl := template.Must(template.ParseFS(files, "status.html"))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), defaultTimeout)
		defer cancel()
		results := set.Read(ctx, collector.All)
		var b bytes.Buffer
		err := tmpl.Execute(&b, page{
			TelemetryPath: c.TelemetryPath,
			Version:       c.Version,
			Limits:        collector.Limits(results),
			Results:       results,
			Foreign:       set.HostNetworkNamespace(),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(b.Bytes())
	})
}
