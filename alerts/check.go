package alerts

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
)

// check finds mistakes: names that no rule has, and values of which no rule can be made or
// that cannot be meant. The chart's schema and templates and the mixin do the same.
func (c Config) check(groups []Group) error {
	for _, name := range slices.Sorted(maps.Keys(c.Severities)) {
		if !slices.Contains([]string{Critical, Warning, Info}, name) {
			return fmt.Errorf("severities: there is no %q", name)
		}
	}
	if err := checkMatchers(c.Select); err != nil {
		return fmt.Errorf("select: %w", err)
	}
	for _, err := range []error{
		checkDuration("interval", c.Interval), checkLabels("labels", c.Labels), checkLabels("annotations", c.Annotations),
	} {
		if err != nil {
			return err
		}
	}
	known := knownNames(groups)
	check := func(s, merged Scope) error {
		for _, kind := range []struct {
			name    string
			changes map[string]Change
		}{{"resources", s.Resources}, {"alerts", s.Alerts}} {
			for _, name := range slices.Sorted(maps.Keys(kind.changes)) {
				params, ok := known[kind.name][name]
				if !ok {
					return fmt.Errorf("%s: there is no %q", kind.name, name)
				}
				if err := kind.changes[name].check(params); err != nil {
					return fmt.Errorf("%s: %s%w", kind.name, name, err)
				}
			}
		}
		return merged.checkLevels(groups)
	}
	if err := check(c.Scope, c.Scope); err != nil {
		return err
	}
	for _, job := range slices.Sorted(maps.Keys(c.Jobs)) {
		if err := check(c.Jobs[job], c.under(c.Jobs[job])); err != nil {
			return fmt.Errorf("jobs: %s: %w", job, err)
		}
	}
	return nil
}

// knownNames returns the parameters of the rules, by what a Config may name.
func knownNames(groups []Group) map[string]map[string]map[string]bool {
	known := map[string]map[string]map[string]bool{"alerts": {}, "resources": {}}
	note := func(kind, name string, params map[string]string) {
		if known[kind][name] == nil {
			known[kind][name] = map[string]bool{}
		}
		for param := range params {
			known[kind][name][param] = true
		}
	}
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				note("alerts", r.Alert, r.Params)
				note("alerts", r.Alert+"/"+r.Severity, r.Params)
			}
			for _, resource := range r.Resources {
				if len(r.Resources) > 1 {
					note("resources", resource, nil)
				} else {
					note("resources", resource, r.Params)
				}
			}
		}
	}
	return known
}

// check checks one change; its errors follow the name of what is changed.
func (c Change) check(params map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		if !params[name] {
			return fmt.Errorf(" has no parameter %q, but %s", name, strings.Join(slices.Sorted(maps.Keys(params)), ", "))
		}
		value, ok := float(c.Params[name])
		least, isRatio := ratios[name]
		switch {
		case isRatio && !(ok && value >= least && value <= maxRatio):
			return fmt.Errorf(": %s is %#v, want a ratio such as 0.8, between %v and %v", name, c.Params[name], least, maxRatio)
		case !(ok && value >= 0 && !math.IsInf(value, 0)):
			return fmt.Errorf(": %s is %#v, want a number of 0 or more", name, c.Params[name])
		}
	}
	for _, err := range []error{
		checkDuration("for", c.For), checkDuration("keepFiringFor", c.KeepFiringFor), checkLabels("labels", c.Labels),
	} {
		if err != nil {
			return fmt.Errorf(": %w", err)
		}
	}
	return nil
}

// ratios are the parameters that are compared with a ratio, and the least value of each:
// the series that the rules read have no lower ones.
var ratios = map[string]float64{
	"warning": leastLevel, "critical": leastLevel, "full": leastLevel,
	"from": leastRising, "fast": leastRising,
	"share": 0.01,
}

// maxRatio is the largest ratio. Some limits can be exceeded, but not by half: what is
// above it is a percentage.
const maxRatio = 1.5

// float returns a number as YAML has it, or helm --set, which makes a string of a fraction.
func float(value any) (float64, bool) {
	switch v := value.(type) {
	case int:
		return float64(v), true
	case float64:
		return v, true
	case string:
		f, err := strconv.ParseFloat(v, 64)
		return f, err == nil
	}
	return 0, false
}

// checkLevels returns an error if a ticket would come no earlier than the page of the same
// name.
func (s Scope) checkLevels(groups []Group) error {
	level := func(r Rule, param string) (float64, bool) {
		c := s.change(r)
		text, ok := r.Params[param]
		if !ok || c.Enabled != nil && !*c.Enabled {
			return 0, false
		}
		if value, ok := float(c.Params[param]); ok {
			return value, true
		}
		value, err := strconv.ParseFloat(text, 64)
		return value, err == nil
	}
	for _, g := range groups {
		for _, ticket := range g.Rules {
			warning, ok := level(ticket, Warning)
			if !ok || ticket.Severity != Warning {
				continue
			}
			for _, page := range g.Rules {
				critical, ok := level(page, Critical)
				if ok && page.Severity == Critical && page.Alert == ticket.Alert && slices.Equal(page.Resources, ticket.Resources) && warning >= critical {
					return fmt.Errorf("%s: warning, %v, is not below critical, %v", strings.Join(append([]string{ticket.Alert}, ticket.Resources...), ", "), warning, critical)
				}
			}
		}
	}
	return nil
}

func checkDuration(name, value string) error {
	if value == "" {
		return nil
	}
	if _, err := model.ParseDuration(value); err != nil {
		return fmt.Errorf("%s is %q, want a duration such as 30s or 5m", name, value)
	}
	return nil
}

func checkLabels(name string, labels map[string]string) error {
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		if !model.LegacyValidation.IsValidLabelName(label) {
			return fmt.Errorf("%s: %q is not a name that Prometheus allows", name, label)
		}
	}
	return nil
}

// checkMatchers checks matchers as they are written between braces, without a comma at the
// end.
func checkMatchers(matchers string) error {
	matcher := regexp.MustCompile(`^\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(=~|!~|!=|=)\s*("(?:[^"\\\n]|\\.)*")\s*(,|$)`)
	for rest := matchers; rest != ""; {
		m := matcher.FindStringSubmatch(rest)
		if m == nil || m[3] == "," && len(m[0]) == len(rest) {
			return fmt.Errorf("%q is not a list of matchers such as env=%q", matchers, "prod")
		}
		value, err := strconv.Unquote(m[2])
		if err == nil && strings.HasSuffix(m[1], "~") {
			_, err = regexp.Compile(value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m[2], err)
		}
		rest = rest[len(m[0]):]
	}
	return nil
}
