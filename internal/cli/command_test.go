package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
)

// greetCommand is an example of a command, with a flag of each kind, an argument, and its own
// exit statuses.
func greetCommand() command {
	var (
		tone   string
		twice  bool
		person string
	)
	return command{
		name:   "greet",
		help:   "Print a greeting.",
		exits:  "exits with 5 once it has greeted, and with 4 if there is nobody.",
		failed: 4,
		define: func(cmd *kingpin.CmdClause) {
			flag := cmd.Flag("tone", "How: warm or cold.").Default("warm")
			flag.EnumVar(&tone, "warm", "cold")
			offer(flag, "warm", "cold")
			cmd.Flag("twice", "Say it twice.").Default("true").BoolVar(&twice)
			cmd.Arg("person", "Whom to greet.").Required().StringVar(&person)
		},
		run: func(_ context.Context, c *config, std streams) (int, error) {
			if person == "nobody" {
				return 0, errors.New("nobody\nis there")
			}
			from, err := io.ReadAll(std.in)
			if err != nil {
				return 0, err
			}
			_, err = fmt.Fprintf(std.out, "%s %t %s %s %d", tone, twice, person, from, c.top)
			return 5, err
		},
	}
}

// TestNewCommand checks that adding a command to the table is sufficient: it is in the help,
// the man page and the completions, has its own flags and those of the program, and its own
// exit statuses. The other commands do not change.
func TestNewCommand(t *testing.T) {
	table := append(commands(), greetCommand())
	do := func(table []command, args string) (status int, stdout, stderr string) {
		t.Helper()
		var out, err bytes.Buffer
		status = run(t.Context(), table, strings.Fields(args), streams{strings.NewReader("me"), &out, &err})
		return status, out.String(), err.String()
	}

	for args, want := range map[string][]string{
		"--help":       {"\ngreet [<flags>] <person>\n    Print a greeting.\n"},
		"--version":    {"sockpressure_exporter, version "},
		"greet --help": {"--tone=warm ", "--[no-]twice ", "<person>  Whom to greet.\n", "--[no-]collector.tcp "},
		"--help-long":  {"\ngreet [<flags>] <person>\n", "--tone=warm "},
		"--help-man": {
			".br\n.B sockpressure_exporter greet\n.RI [ flag ...]\n.I person\n.SH DESCRIPTION\n",
			".TP\n.B greet\nPrint a greeting.\n.RS\n.TP\n.I person\nWhom to greet.\n.TP\n\\fB\\-\\-tone\\fR=\\fIwarm\\fR\nHow: warm or cold.\n.TP\n\\fB\\-\\-[no\\-]twice\\fR\nSay it twice.\n.RE\n",
			".PP\n.B greet\nexits with 5 once it has greeted, and with 4 if there is nobody.\n.SH SIGNALS\n",
		},
		"--completion-script-bash": {`found=" serve check who plan greet"`, `--tone|--tone=) found="warm cold" ;;`, `--format|--format=) case $line in *" check "*) found="text json plugin" ;; *" who "*) found="text json" ;; *" plan "*) found="table sysctl json" ;; esac ;;`, `*" greet "*) found="$found --tone --twice --no-twice" ;;`},
		"--completion-script-zsh":  {`found=" serve check who plan greet"`, `--tone|--tone=) found="warm cold" ;;`, `--format|--format=) case $line in *" check "*) found="text json plugin" ;; *" who "*) found="text json" ;; *" plan "*) found="table sysctl json" ;; esac ;;`, `*" greet "*) found="$found --tone --twice --no-twice" ;;`},
	} {
		status, stdout, stderr := do(table, args)
		if status != 0 || stderr != "" {
			t.Errorf("%s: status %d, %q", args, status, stderr)
		}
		for _, w := range want {
			if !strings.Contains(stdout, w) {
				t.Errorf("%s lacks %q:\n%s", args, w, stdout)
			}
		}
		if _, before, _ := do(commands(), args); strings.Contains(before, "tone") {
			t.Errorf("%s mentions the command although it is not in the table", args)
		}
	}

	for args, want := range map[string]struct {
		status         int
		stdout, stderr string
	}{
		"greet you":                                      {5, "warm true you me 10", ""},
		"greet --no-twice you --tone=cold":               {5, "cold false you me 10", ""},
		"--collector.top=7 greet you --twice=false":      {5, "warm false you me 7", ""},
		"greet you --no-twice=true":                      {5, "warm false you me 10", ""},
		"greet you --twice=maybe":                        {4, "", "--twice=\"maybe\" must be true or false (try --help)"},
		"greet nobody":                                   {4, "", "nobody is there"},
		"greet":                                          {4, "", "required argument 'person' not provided (try --help)"},
		"greet --tone=hot you":                           {4, "", "--tone=hot: enum value must be one of warm,cold, got 'hot' (try --help)"},
		"greet --format=json you":                        {4, "", "unknown long flag '--format' (try --help)"},
		"--collector.top=0 greet you":                    {4, "", "--collector.top=0 must be between 1 and 100"},
		"--nonsense greet":                               {4, "", "unknown long flag '--nonsense' (try --help)"},
		"--nonsense serve":                               {1, "", "unknown long flag '--nonsense' (try --help)"},
		"check --tone=cold":                              {unknown, "", "unknown long flag '--tone' (try --help)"},
		"check --path.procfs=/nowhere --collector.top=7": {unknown, "", "procfs: open /nowhere: no such file or directory"},
	} {
		if want.stderr != "" {
			want.stderr = "sockpressure_exporter: error: " + want.stderr + "\n"
		}
		if status, stdout, stderr := do(table, args); status != want.status || stdout != want.stdout || stderr != want.stderr {
			t.Errorf("%s: status %d, %q, %q, want %+v", args, status, stdout, stderr, want)
		}
	}
}
