package cli

import (
	"fmt"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

// manPage is the template of --help-man. It is filled from the flags and commands, and
// contains the text that they do not have. kingpin's own template has no section after
// COMMANDS, and fails if version has more than one line.
const manPage = `{{define "Flags" -}}
{{range .Flags}}{{if not .Hidden -}}
.TP
\fB{{if .Short}}\-{{.Short|Char}}\fR, \fB{{end}}\-\-{{if on .}}[no\-]{{end}}{{roff .Name}}\fR{{if not .IsBoolFlag}}=\fI{{roff .FormatPlaceHolder}}\fR{{end}}
{{roff .Help}}
{{end}}{{end}}{{end -}}
.TH SOCKPRESSURE_EXPORTER 1 "{{manDate}}" "{{.App.Name}} {{manVersion}}" "User Commands"
.SH NAME
{{.App.Name}} \- Prometheus exporter of kernel limits on sockets and memory
.SH SYNOPSIS
.B {{.App.Name}}
.RI [ flag ...]
{{range .App.Commands}}{{if not (or .Hidden .Default (eq .Name "help"))}}.br
.B {{$.App.Name}} {{.Name}}
.RI [ flag ...]
{{range .Args}}{{if .Required}}.I {{roff .Name}}{{else}}.RI [ {{roff .Name}} ]{{end}}
{{end}}{{end}}{{end -}}
.SH DESCRIPTION
{{roff .App.Help}}
Every limit is one series,
.BR sockpressure_saturation_ratio ,
from 0 to 1.
.PP
Any user may run it.
The memory of slab caches needs CAP_DAC_READ_SEARCH,
as do the descriptors of other users' processes before Linux 6.2.
.B who
prints below its table what it may not read:
the sockets of other users' processes need CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH,
other network namespaces CAP_SYS_ADMIN and CAP_SYS_PTRACE,
and tracked connections CAP_NET_ADMIN.
.SH COMMANDS
{{range .App.Commands}}{{if not (or .Hidden (eq .Name "help")) -}}
.TP
.B {{.Name}}
{{roff .Help}}
{{if or .Args .Flags}}.RS
{{range .Args}}.TP
.I {{roff .Name}}
{{roff .Help}}
{{end}}{{template "Flags" .}}.RE
{{end}}{{end}}{{end -}}
.SH OPTIONS
The value shown is the default.
An option without a value is on or off, and also takes
.B =true
or
.BR =false .
{{template "Flags" .App -}}
.SH EXIT STATUS
{{exits -}}
.SH SIGNALS
SIGTERM and SIGINT stop the program;
.B who
prints what it has found so far.
SIGHUP does not stop
.BR serve ,
unless its terminal was closed:
there is nothing to reload.
The file given by \-\-web.config.file and its certificates are reread automatically,
and other flags need a restart.
.SH ENVIRONMENT
.TP
.B GOMAXPROCS
Number of processors that may run Go code at the same time.
The default is 1.
.TP
.B NO_COLOR
If set and not empty,
.B check
does not use colours on a terminal.
.TP
.B TERM
If set to dumb,
.B check
does not use colours either.
.SH FILES
.TP
.IR /etc/default/sockpressure_exporter ", " /etc/sysconfig/sockpressure_exporter
Flags of the service, in ARGS.
.TP
.I /usr/share/sockpressure_exporter
Rules for Prometheus and dashboards for Grafana.
.SH EXAMPLES
Print every limit, the most saturated first:
.PP
.RS
.EX
{{.App.Name}} check
.EE
.RE
.PP
Print who holds TCP memory, by process:
.PP
.RS
.EX
{{.App.Name}} who tcp_memory \-\-by=process
.EE
.RE
.PP
Serve on one address, without the process collector:
.PP
.RS
.EX
{{.App.Name}} \-\-web.listen\-address=192.0.2.1:10058 \-\-no\-collector.process
.EE
.RE
.SH SEE ALSO
.BR ss (8),
.BR sysctl (8),
.BR tcp (7)
.PP
https://github.com/sockpressure/sockpressure_exporter
`

// pages returns the template of each page that a flag prints.
func pages() map[string]string {
	return map[string]string{
		"help-long":              kingpin.LongHelpTemplate,
		"help-man":               manPage,
		"completion-script-bash": bashCompletion,
		"completion-script-zsh":  zshCompletion,
	}
}

// pageFuncs returns the functions that manPage and the completions need in addition to
// kingpin's.
func pageFuncs(table []command) template.FuncMap {
	return template.FuncMap{
		"roff":         roff,
		"values":       values,
		"commandFlags": commandFlags,
		// on reports whether a flag is on by default. It does not use the value, which is
		// not set if the flag belongs to another command.
		"on": func(flag *kingpin.FlagModel) bool {
			return flag.IsBoolFlag() && slices.Equal(flag.Default, []string{"true"})
		},
		"exits": func() string {
			var paragraphs []string
			for _, c := range table {
				paragraphs = append(paragraphs, fmt.Sprintf(".B %s\n%s\n", roff(c.name), roff(c.exits)))
			}
			return strings.Join(paragraphs, ".PP\n")
		},
		"manVersion": func() string {
			return version.Version
		},
		"manDate": func() string {
			built, err := time.Parse(buildDate, version.BuildDate)
			if err != nil {
				return "" // Go recorded none
			}
			return built.Format(time.DateOnly)
		},
	}
}

// roff escapes text for a man page, so that hyphens can be copied into a shell and no
// line is interpreted as a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`).Replace(text)
	if strings.HasPrefix(text, ".") {
		return `\&` + text
	}
	return text
}
