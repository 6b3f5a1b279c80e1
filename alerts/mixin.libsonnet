// The alerts, recording rules and dashboards as a mixin:
//
//   (import 'sockpressure_exporter/alerts/mixin.libsonnet') + {
//     _config+:: { resources: { tcp_time_wait: { enabled: false } } },
//   }
//
// _config is the document that docs/alerts.md describes. This does what
// alerts/config.go does, and is compared with that.
local data = import 'rules.json';

local get(object, name, default) = if std.objectHas(object, name) then object[name] else default;
local nonempty(value, default) = if value == null || value == '' then default else value;
// A number in the shortest form: 0.7 and not 0.69999999999999996.
local text(value) = if std.isNumber(value) then '%.10g' % value else std.toString(value);
local quote(s) = '"' + std.strReplace(std.strReplace(s, '\\', '\\\\'), '"', '\\"') + '"';
local quoteMeta(s) = std.join('', [if std.member('\\.+*?()|[]{}^$', c) then '\\' + c else c for c in std.stringChars(s)]);

// Lays a change over another one.
local over(a, b) = a + b + {
  labels: get(a, 'labels', {}) + get(b, 'labels', {}),
  params: get(a, 'params', {}) + get(b, 'params', {}),
};
local under(a, b) = a { [name]: over(get(a, name, {}), b[name]) for name in std.objectFields(b) };

local known = {
  local all = [r for g in data.groups for r in g.rules if std.objectHas(r, 'alert')],
  local params(rules) = std.set(std.flattenArrays([std.objectFields(get(r, 'params', {})) for r in rules])),
  alerts: {
    [name]: params([r for r in all if r.alert == name || r.alert + '/' + r.severity == name])
    for name in std.set(std.flattenArrays([[r.alert, r.alert + '/' + r.severity] for r in all]))
  },
  resources: {
    [name]: params([r for r in all if get(r, 'resources', []) == [name]])
    for name in std.set(std.flattenArrays([get(r, 'resources', []) for r in all]))
  },
};

// A rule's change in a scope.
local changed(scope, rule) =
  local resources = get(rule, 'resources', []);
  over(
    over(
      over({}, if std.length(resources) == 1 then get(get(scope, 'resources', {}), resources[0], {}) else {}),
      get(get(scope, 'alerts', {}), rule.alert, {})
    ),
    get(get(scope, 'alerts', {}), rule.alert + '/' + rule.severity, {})
  );

// The scope of a job, over that of all.
local within(config, job) = {
  resources: under(get(config, 'resources', {}), get(config.jobs[job], 'resources', {})),
  alerts: under(get(config, 'alerts', {}), get(config.jobs[job], 'alerts', {})),
};

// A threshold is a number, also in a string.
local numeric(value) = std.isNumber(value) || (std.isString(value) && value != '' && std.stripChars(value, '0123456789.') == '');
local float(value) = if std.isNumber(value) then value else std.parseJson(value);

// Thresholds that are compared with a ratio, and the least value of each.
local ratios = { warning: 0.25, critical: 0.25, full: 0.25, from: 0.5, fast: 0.5, share: 0.01 };
local isRatio(param) = std.objectHas(ratios, param);

// Refuses names that no rule has, and thresholds that cannot be meant.
local check(config) =
  local jobs = std.objectFields(get(config, 'jobs', {}));
  local scopes = [config] + std.objectValues(get(config, 'jobs', {}));
  local levels(scope, group, severity) = [
    { alert: rule.alert, resources: get(rule, 'resources', []), value: float(get(change.params, severity, rule.params[severity])) }
    for rule in group.rules
    if get(rule, 'severity', '') == severity && std.objectHas(get(rule, 'params', {}), severity)
    for change in [changed(scope, rule)]
    if get(change, 'enabled', true)
  ];
  local wrong = [
    '%s: there is no "%s"' % [kind, name]
    for scope in scopes
    for kind in std.objectFields(known)
    for name in std.objectFields(get(scope, kind, {}))
    if !std.objectHas(known[kind], name)
  ] + [
    '%s: %s has no parameter "%s", but %s' % [kind, name, param, std.join(', ', known[kind][name])]
    for scope in scopes
    for kind in std.objectFields(known)
    for name in std.objectFields(get(scope, kind, {}))
    if std.objectHas(known[kind], name)
    for param in std.objectFields(get(scope[kind][name], 'params', {}))
    if !std.member(known[kind][name], param)
  ] + [
    '%s: %s: %s is %s, want %s' % [kind, name, param, std.manifestJson(value), if isRatio(param) then 'a ratio such as 0.8, between %s and 1.5' % text(ratios[param]) else 'a number of 0 or more']
    for scope in scopes
    for kind in std.objectFields(known)
    for name in std.objectFields(get(scope, kind, {}))
    for param in std.objectFields(get(scope[kind][name], 'params', {}))
    for value in [scope[kind][name].params[param]]
    if !numeric(value) || (if isRatio(param) then float(value) < ratios[param] || float(value) > 1.5 else float(value) < 0)
  ];
  local unordered = [
    '%s: warning, %s, is not below critical, %s' % [std.join(', ', [ticket.alert] + ticket.resources), text(ticket.value), text(page.value)]
    for scope in [config] + [within(config, job) for job in jobs]
    for group in data.groups
    for ticket in levels(scope, group, 'warning')
    for page in levels(scope, group, 'critical')
    if page.alert == ticket.alert && page.resources == ticket.resources && ticket.value >= page.value
  ];
  if wrong != [] then error wrong[0]
  else if unordered != [] then error unordered[0]
  else config;

local expand(rule, matchers, resources, except, params) =
  local resource =
    if except != [] then 'resource!~' + quote(std.join('|', except))
    else if std.length(resources) == 1 then 'resource=' + quote(resources[0])
    else 'resource=~' + quote(std.join('|', resources));
  local filled = std.strReplace(
    std.strReplace(rule.expr, '${select}', if matchers == '' then '' else matchers + ','), '${resource}', resource
  );
  local expr = std.foldl(
    function(e, name) std.strReplace(e, '${' + name + '}', text(get(params, name, rule.params[name]))),
    std.objectFields(get(rule, 'params', {})),
    filled
  );
  std.strReplace(std.strReplace(expr, ',}', '}'), '{}', '');

local groups(unchecked, recording) =
  local config = check(unchecked);
  local jobs = std.objectFields(get(config, 'jobs', {}));
  local select = get(config, 'select', '');
  local severities = get(config, 'severities', {});
  local rename(severity) = get(severities, severity, severity);
  local others = if jobs == [] then '' else 'job!~' + quote(std.join('|', [quoteMeta(j) for j in jobs]));
  local scopes = [{
    suffix: '',
    matchers: others,
    resources: get(config, 'resources', {}),
    alerts: get(config, 'alerts', {}),
  }] + [
    {
      suffix: '-' + job,
      matchers: 'job=' + quote(job),
    } + within(config, job)
    for job in jobs
  ];

  local matchers(scope) = std.join(',', [m for m in [select, scope.matchers] if m != '']);
  local alert(scope, rule) =
    local all = get(rule, 'resources', []);
    local on(resource) = get(get(scope.resources, resource, {}), 'enabled', true);
    local resources = std.filter(on, all);
    local except = get(rule, 'except', []);
    local change = changed(scope, rule);
    local hold = nonempty(get(change, 'for', ''), get(rule, 'for', ''));
    local keep = nonempty(get(change, 'keepFiringFor', ''), get(rule, 'keepFiringFor', ''));
    if !get(change, 'enabled', true) || (all != [] && resources == []) then [] else [{
      alert: rule.alert,
      expr: std.strReplace(expand(
        rule,
        matchers(scope),
        resources,
        if except == [] then [] else except + [r for r in std.objectFields(scope.resources) if !on(r) && !std.member(except, r)],
        change.params
      ), '${page}', rename('critical')),
      [if hold != '' then 'for']: hold,
      [if keep != '' then 'keep_firing_for']: keep,
      labels: get(rule, 'labels', {}) + get(config, 'labels', {}) + change.labels + {
        severity: rename(nonempty(get(change, 'severity', ''), rule.severity)),
      },
      annotations: {
        summary: rule.summary,
        description: rule.description,
        runbook_url: nonempty(get(config, 'runbookURL', ''), data.runbookURL) + std.asciiLower(rule.alert),
      } + get(config, 'annotations', {}),
    }];

  // Those that stand before alerts, which read them, are for the same jobs.
  local alerting(group) = std.length([r for r in group.rules if std.objectHas(r, 'alert')]) > 0;
  local record(scope, group, rule) = if scope.suffix != '' && !alerting(group) then [] else [{
    record: rule.record,
    expr: expand(
      rule, if alerting(group) then matchers(scope) else select, get(rule, 'resources', []), get(rule, 'except', []), {}
    ),
    [if std.objectHas(rule, 'labels') then 'labels']: rule.labels,
  }];

  local made = [
    {
      name: group.name + scope.suffix,
      interval: if alerting(group) && group.interval == '15s' then nonempty(get(config, 'interval', ''), '15s') else group.interval,
      rules: std.flattenArrays([
        if std.objectHas(rule, 'record') then record(scope, group, rule) else alert(scope, rule)
        for rule in group.rules
        if recording != alerting(group)
      ]),
    }
    for scope in scopes
    for group in data.groups
  ];
  [g for g in made if g.rules != []];

{
  _config:: {},
  prometheusAlerts+:: { groups+: groups($._config, false) },
  prometheusRules+:: { groups+: groups($._config, true) },
  grafanaDashboards+:: {
    'sockpressure-fleet.json': import '../dashboards/sockpressure-fleet.json',
    'sockpressure-node.json': import '../dashboards/sockpressure-node.json',
  },
}
