package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// prometheus is a Prometheus, the time that is asked for, and what is chosen.
type prometheus struct {
	url       string
	from, to  time.Time
	step      time.Duration
	variables map[string]string
}

// series is an answer: a value at each step, NaN where there is none.
type series struct {
	labels map[string]string
	values []float64
}

// name is what a legend calls a series.
func (s series) name(format string) string {
	name := regexp.MustCompile(`{{\s*(\w+)\s*}}`).ReplaceAllStringFunc(format, func(l string) string {
		return s.labels[strings.Trim(l, "{} ")]
	})
	return strings.TrimSpace(name)
}

// now asks for the values at the end.
func (p prometheus) now(expr string) ([]series, error) {
	return p.ask("query", expr, url.Values{"time": {stamp(p.to)}})
}

// history asks for the values at every step.
func (p prometheus) history(expr string) ([]series, error) {
	return p.ask("query_range", expr, url.Values{"start": {stamp(p.from)}, "end": {stamp(p.to)}, "step": {strconv.FormatFloat(p.step.Seconds(), 'g', -1, 64)}})
}

func stamp(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func (p prometheus) ask(what, expr string, query url.Values) ([]series, error) {
	// The longest name first: one may begin with another.
	var names []string
	for name := range p.variables {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, name := range names {
		expr = strings.ReplaceAll(expr, "$"+name, p.variables[name])
	}
	query.Set("query", expr)
	resp, err := http.PostForm(p.url+"/api/v1/"+what, query) //nolint:noctx // a person waits, and can interrupt it
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", expr, resp.Status, body)
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
				Values [][2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	steps := 1
	if what == "query_range" {
		steps = int(p.to.Sub(p.from)/p.step) + 1
	}
	var all []series
	for _, r := range answer.Data.Result {
		s := series{r.Metric, slices.Repeat([]float64{math.NaN()}, steps)}
		if what == "query" {
			_, s.values[0] = sample(r.Value)
		}
		for _, v := range r.Values {
			at, value := sample(v)
			if i := int((at - float64(p.from.Unix())) / p.step.Seconds()); i >= 0 && i < steps {
				s.values[i] = value
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// sample reads a time and a value as Prometheus writes them.
func sample(pair [2]any) (at, value float64) {
	at, _ = pair[0].(float64)
	text, _ := pair[1].(string)
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		value = math.NaN()
	}
	return at, value
}
