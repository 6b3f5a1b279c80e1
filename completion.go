package main

import (
	"strings"

	"github.com/prometheus/common/promslog"
)

// bashCompletion and zshCompletion are what --completion-script-bash and -zsh
// print. kingpin's own ask the program for words, and it knows neither --no-flag
// nor --flag=value, and no command but after a blank. A word that nothing here
// begins with is completed as the name of a file.
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
	// completionWords sets found to what may stand in the place of cur, after flag,
	// which ends in = if cur is the value in --flag=value.
	completionWords = `    case $flag in
{{range .App.Flags}}{{if not (or .Hidden .IsBoolFlag)}}    --{{.Name}}|--{{.Name}}=) found="{{values .Name}}" ;;
{{end}}{{end}}{{range .App.Commands}}{{range .Flags}}    --{{.Name}}|--{{.Name}}=) found="{{values .Name}}" ;;
{{end}}{{end}}    --*=) found="true false" ;;
    *)
        case $cur in
        -*)
            found="{{range .App.Flags}}{{if not .Hidden}} --{{.Name}}{{if eq .String "true"}} --no-{{.Name}}{{end}}{{end}}{{end}}"
            case $line in
{{range .App.Commands}}{{if .Flags}}            *" {{.Name}} "*) found="$found{{range .Flags}} --{{.Name}}{{end}}" ;;
{{end}}{{end}}            esac
            ;;
        *) found="{{range .App.Commands}}{{if ne .Name "help"}} {{.Name}}{{end}}{{end}}" ;;
        esac
        ;;
    esac`
)

// values are those that a flag may have, where they can be listed.
func values(flag string) string {
	return strings.Join(map[string][]string{
		"format":     {formatText, formatJSON},
		"log.level":  promslog.LevelFlagOptions,
		"log.format": promslog.FormatFlagOptions,
	}[flag], " ")
}
