{{/*
The rules of files/rules.json with the changes of prometheusRule.config, as a list of
groups in JSON. It does what alerts/config.go does, and is compared with that.
*/}}
{{- define "sockpressure.rules" -}}
{{- $config := .Values.prometheusRule.config -}}
{{- $data := .Files.Get "files/rules.json" | fromJson -}}
{{- include "sockpressure.rules.check" (list $config $data) -}}
{{- $severities := $config.severities | default dict -}}
{{- $quoted := list -}}
{{- range $job := keys ($config.jobs | default dict) | sortAlpha -}}
{{- $quoted = append $quoted (regexQuoteMeta $job) -}}
{{- end -}}
{{- $others := "" -}}
{{- with $quoted -}}{{- $others = printf "job!~%s" (join "|" . | quote) -}}{{- end -}}
{{- $scopes := list (dict "suffix" "" "matchers" $others "over" (list $config)) -}}
{{- range $job := keys ($config.jobs | default dict) | sortAlpha -}}
{{- $scopes = append $scopes (dict "suffix" (printf "-%s" $job) "matchers" (printf "job=%s" (quote $job)) "over" (list $config (get $config.jobs $job))) -}}
{{- end -}}
{{- $groups := list -}}
{{- range $scope := $scopes -}}
{{- range $group := $data.groups -}}
{{- $rules := list -}}
{{- $tickets := dict -}}
{{- $matchers := printf "%s,%s" ($config.select | default "") $scope.matchers | trimAll "," -}}
{{- $alerting := false -}}
{{- range $rule := $group.rules -}}{{- if $rule.alert -}}{{- $alerting = true -}}{{- end -}}{{- end -}}
{{- $interval := $group.interval -}}
{{- if and $alerting $config.interval (eq $group.interval "15s") -}}{{- $interval = $config.interval -}}{{- end -}}
{{- range $rule := $group.rules -}}
{{- if $rule.record -}}
{{- /* Those that stand before alerts, which read them, are for the same jobs. */ -}}
{{- if or $alerting (not $scope.suffix) -}}
{{- $expr := include "sockpressure.rules.expr" (list $rule (ternary $matchers ($config.select | default "") $alerting) $rule.resources $rule.except dict) -}}
{{- $out := dict "record" $rule.record "expr" $expr -}}
{{- with $rule.labels -}}{{- $_ := set $out "labels" . -}}{{- end -}}
{{- $rules = append $rules $out -}}
{{- end -}}
{{- else -}}
{{- /* What is changed, the general first, and which limits are left out. */ -}}
{{- $off := dict -}}
{{- $change := dict "labels" dict "params" dict -}}
{{- range $key := list "resources" "alerts" -}}
{{- range $over := $scope.over -}}
{{- range $resource, $own := ($over.resources | default dict) -}}
{{- if and (eq $key "resources") (hasKey $own "enabled") -}}{{- $_ := set $off $resource (not $own.enabled) -}}{{- end -}}
{{- end -}}
{{- if and (eq $key "resources") (eq (len ($rule.resources | default list)) 1) -}}
{{- include "sockpressure.rules.overlay" (list $change (get ($over.resources | default dict) (first $rule.resources))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name := list $rule.alert (printf "%s/%s" $rule.alert $rule.severity) -}}
{{- range $over := $scope.over -}}
{{- include "sockpressure.rules.overlay" (list $change (get ($over.alerts | default dict) $name)) -}}
{{- end -}}
{{- end -}}
{{- $resources := list -}}
{{- range $resource := ($rule.resources | default list) -}}
{{- if not (get $off $resource) -}}{{- $resources = append $resources $resource -}}{{- end -}}
{{- end -}}
{{- $except := $rule.except -}}
{{- if $except -}}
{{- range $resource := keys $off | sortAlpha -}}
{{- if and (get $off $resource) (not (has $resource $except)) -}}{{- $except = append $except $resource -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $enabled := true -}}
{{- if hasKey $change "enabled" -}}{{- $enabled = $change.enabled -}}{{- end -}}
{{- if and $enabled (or $resources (not $rule.resources)) -}}
{{- $level := merge dict $change.params ($rule.params | default dict) -}}
{{- $limit := prepend ($rule.resources | default list) $rule.alert | join ", " -}}
{{- if and (eq $rule.severity "warning") (hasKey $level "warning") -}}{{- $_ := set $tickets $limit $level.warning -}}{{- end -}}
{{- if and (eq $rule.severity "critical") (hasKey $level "critical") (hasKey $tickets $limit) -}}
{{- $warning := get $tickets $limit -}}
{{- if ge (float64 $warning) (float64 $level.critical) -}}
{{- fail (printf "prometheusRule.config: %s: warning, %v, is not below critical, %v" $limit $warning $level.critical) -}}
{{- end -}}
{{- end -}}
{{- $page := get $severities "critical" | default "critical" -}}
{{- $expr := include "sockpressure.rules.expr" (list $rule $matchers $resources $except $change.params) | replace "${page}" $page -}}
{{- $severity := $change.severity | default $rule.severity -}}
{{- $labels := dict -}}
{{- range $more := list $rule.labels $config.labels $change.labels (dict "severity" (get $severities $severity | default $severity)) -}}
{{- range $key, $value := ($more | default dict) -}}{{- $_ := set $labels $key $value -}}{{- end -}}
{{- end -}}
{{- $annotations := dict "summary" $rule.summary "description" $rule.description "runbook_url" (printf "%s%s" ($config.runbookURL | default $data.runbookURL) (lower $rule.alert)) -}}
{{- range $key, $value := ($config.annotations | default dict) -}}{{- $_ := set $annotations $key $value -}}{{- end -}}
{{- $out := dict "alert" $rule.alert "expr" $expr "labels" $labels "annotations" $annotations -}}
{{- with $change.for | default $rule.for -}}{{- $_ := set $out "for" . -}}{{- end -}}
{{- with $change.keepFiringFor | default $rule.keepFiringFor -}}{{- $_ := set $out "keep_firing_for" . -}}{{- end -}}
{{- $rules = append $rules $out -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $rules -}}
{{- $groups = append $groups (dict "name" (printf "%s%s" $group.name $scope.suffix) "interval" $interval "rules" $rules) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "groups" $groups | toJson -}}
{{- end -}}

{{/* Lays a change over another one, which it alters: (list INTO CHANGE). */}}
{{- define "sockpressure.rules.overlay" -}}
{{- $into := index . 0 -}}
{{- range $key, $value := (index . 1 | default dict) -}}
{{- if kindIs "map" $value -}}
{{- range $name, $item := $value -}}{{- $_ := set (get $into $key) $name $item -}}{{- end -}}
{{- else -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fills in an expression: (list RULE MATCHERS RESOURCES EXCEPT PARAMS). */}}
{{- define "sockpressure.rules.expr" -}}
{{- $rule := index . 0 -}}{{- $matchers := index . 1 -}}{{- $resources := index . 2 | default list -}}{{- $except := index . 3 -}}{{- $params := index . 4 -}}
{{- $resource := printf "resource=~%s" (join "|" $resources | quote) -}}
{{- if $except -}}{{- $resource = printf "resource!~%s" (join "|" $except | quote) -}}
{{- else if eq (len $resources) 1 -}}{{- $resource = printf "resource=%s" (first $resources | quote) -}}{{- end -}}
{{- if $matchers -}}{{- $matchers = printf "%s," $matchers -}}{{- end -}}
{{- $expr := $rule.expr | replace "${select}" $matchers | replace "${resource}" $resource -}}
{{- range $name, $value := ($rule.params | default dict) -}}
{{- if hasKey $params $name -}}{{- $value = get $params $name | toString -}}{{- end -}}
{{- $expr = $expr | replace (printf "${%s}" $name) $value -}}
{{- end -}}
{{- $expr | replace ",}" "}" | replace "{}" "" -}}
{{- end -}}

{{/* Refuses names that no rule has: (list CONFIG DATA). */}}
{{- define "sockpressure.rules.check" -}}
{{- $config := index . 0 -}}
{{- $known := dict "alerts" dict "resources" dict -}}
{{- range $group := (index . 1).groups -}}
{{- range $rule := $group.rules -}}
{{- if $rule.alert -}}
{{- range $name := list $rule.alert (printf "%s/%s" $rule.alert $rule.severity) -}}
{{- $_ := set $known.alerts $name (concat (get $known.alerts $name | default list) (keys ($rule.params | default dict))) -}}
{{- end -}}
{{- range $resource := ($rule.resources | default list) -}}
{{- $params := list -}}
{{- if eq (len $rule.resources) 1 -}}{{- $params = keys ($rule.params | default dict) -}}{{- end -}}
{{- $_ := set $known.resources $resource (concat (get $known.resources $resource | default list) $params) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $scopes := list $config -}}
{{- range ($config.jobs | default dict) -}}{{- $scopes = append $scopes . -}}{{- end -}}
{{- range $scope := $scopes -}}
{{- range $kind, $names := $known -}}
{{- range $name, $change := (get $scope $kind | default dict) -}}
{{- if not (hasKey $names $name) -}}{{- fail (printf "prometheusRule.config.%s: there is no %q" $kind $name) -}}{{- end -}}
{{- range $param, $value := ($change.params | default dict) -}}
{{- if not (has $param (get $names $name)) -}}
{{- fail (printf "prometheusRule.config.%s: %s has no parameter %q, but %s" $kind $name $param (get $names $name | uniq | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
