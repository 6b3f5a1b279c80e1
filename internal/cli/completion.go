package cli

import (
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
)

// bashCompletion and zshCompletion are what --completion-script-bash and -zsh print. The
// scripts of kingpin itself run the program to get the words, and support neither
// --no-flag nor --flag=value, and a command only after a blank. Words that match nothing
// here are completed as file names.
const (
	bashCompletion = `_{{.App.Name}}() {
    local cur=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]} line=" ${COMP_WORDS[*]} " found
    # To bash, --flag=value is three words.
    if [ "$cur" = = ]; then
        cur=
        flag=$flag=
    elif [ "$flag" = = ]; then
        flag=${COMP_WORDS[COMP_CWORD-2]}=
    fi
` + completionWords + `
    COMPREPLY=($(compgen -W "$found" -- "$cur"))
}
complete -o default -F _{{.App.Name}} {{.App.Name}}
`
	zshCompletion = `#compdef {{.App.Name}}
    local flag=$words[CURRENT-1] line=" $words " found
    # What stands before the value of --flag=value is no part of the word.
    if compset -P 1 '--*='; then
        flag=$IPREFIX
    fi
    local cur=$PREFIX
` + completionWords + `
    compadd -- ${=found} || _files
`
	// completionWords sets found to what may replace cur, after flag,
	// which ends in = if cur is the value in --flag=value.
	completionWords = `    case $flag in
{{template "values" .App.Flags}}{{range commandFlags .App.Commands}}    --{{.Name}}|--{{.Name}}=) {{if or .Values (eq (len .Of) 1)}}found="{{.Values}}"{{else}}case $line in{{range .Of}} *" {{.Command}} "*) found="{{.Values}}" ;;{{end}} esac{{end}} ;;
{{end}}    --*=) found="true false" ;;
    *)
        case $cur in
        -*)
            found="{{template "flags" .App}}"
            case $line in
{{range .App.Commands}}{{if .Flags}}            *" {{.Name}} "*) found="$found{{template "flags" .}}" ;;
{{end}}{{end}}            esac
            ;;
        *)
            found="{{range .App.Commands}}{{if ne .Name "help"}} {{.Name}}{{end}}{{end}}"
            case $line in
{{range .App.Commands}}{{$command := .Name}}{{range .Args}}{{with values .Value}}            *" {{$command}} "*) found="{{.}}" ;;
{{end}}{{end}}{{end}}            esac
            ;;
        esac
        ;;
    esac
{{- define "values"}}{{range .}}{{if not (or .Hidden .IsBoolFlag)}}    --{{.Name}}|--{{.Name}}=) found="{{values .Value}}" ;;
{{end}}{{end}}{{end}}
{{- define "flags"}}{{range .Flags}}{{if not .Hidden}} --{{.Name}}{{if on .}} --no-{{.Name}}{{end}}{{end}}{{end}}{{end}}`
)

// offered is the value of a flag, with all values that it may have.
type offered struct {
	kingpin.Value
	values []string
}

// offer makes the completions offer the values that a flag may have.
func offer(flag *kingpin.FlagClause, values ...string) {
	flag.SetValue(offered{flag.Model().Value, values})
}

// offerArg makes the completions offer the values that an argument may have.
func offerArg(arg *kingpin.ArgClause, values ...string) {
	arg.SetValue(offered{arg.Model().Value, values})
}

// commandFlag is a flag of one or more commands that takes a value.
type commandFlag struct {
	Name string
	// Of are the commands that have it. Values are the values that it may have, if these
	// are the same for all of them.
	Of     []struct{ Command, Values string }
	Values string
}

// commandFlags returns the flags of commands that take a value, each name once.
func commandFlags(commands []*kingpin.CmdModel) []commandFlag {
	var flags []commandFlag
	for _, c := range commands {
		for _, f := range c.Flags {
			if f.Hidden || f.IsBoolFlag() {
				continue
			}
			at := slices.IndexFunc(flags, func(have commandFlag) bool { return have.Name == f.Name })
			if at < 0 {
				at, flags = len(flags), append(flags, commandFlag{Name: f.Name, Values: values(f.Value)})
			} else if flags[at].Values != values(f.Value) {
				flags[at].Values = ""
			}
			flags[at].Of = append(flags[at].Of, struct{ Command, Values string }{c.Name, values(f.Value)})
		}
	}
	return flags
}

// values returns the values that a flag or an argument may have, if they can be listed.
func values(value kingpin.Value) string {
	o, _ := value.(offered)
	return strings.Join(o.values, " ")
}
