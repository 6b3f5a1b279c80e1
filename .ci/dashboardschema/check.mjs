// Holds dashboards to the JSON schema that is made from dashboard.ts, and broken
// copies of them, too: a schema that refuses nothing shows nothing.
//
//   node check.mjs DASHBOARD...
import Ajv from 'ajv';
import { readFileSync } from 'node:fs';
import { createGenerator } from 'ts-json-schema-generator';

const here = (name) => new URL(name, import.meta.url).pathname;
const schema = makeSchema();
typePanels(schema.properties.panels);
const validate = new Ajv({ allErrors: true, allowUnionTypes: true }).compile(schema);

function makeSchema() {
  try {
    return createGenerator({
      path: here('dashboard.ts'),
      tsconfig: here('tsconfig.json'),
      additionalProperties: false,
      expose: 'none', // Names are not unique over Grafana's packages.
      topRef: false,
    }).createSchema('Dashboard');
  } catch (error) {
    // The error itself holds the whole syntax tree.
    if (!error.diagnostic) throw error;
    for (const d of [error.diagnostic, ...(error.diagnostic.relatedInformation ?? [])]) console.error(d.messageText);
    process.exit(1);
  }
}

// typePanels calls typeOverrides for all panels, those inside of rows too.
function typePanels(panels) {
  for (const { then: { properties } } of panels.items.allOf) {
    typeOverrides(properties.fieldConfig?.properties);
    if (properties.panels) typePanels(properties.panels);
  }
}

// typeOverrides gives the properties of overrides the types that the fields have:
// an override names a field, as in {"id": "custom.lineWidth", "value": 2}.
function typeOverrides(fieldConfig) {
  if (!fieldConfig) return; // a row
  const { custom, ...fields } = fieldConfig.defaults.properties;
  for (const [name, field] of Object.entries(custom.properties ?? {})) fields[`custom.${name}`] = field;
  const property = fieldConfig.overrides.items.properties.properties.items;
  property.properties.id = { enum: Object.keys(fields) };
  property.allOf = Object.entries(fields).map(([id, value]) => ({
    if: { properties: { id: { const: id } } },
    then: { properties: { value } },
  }));
}

// mistakes returns what is wrong by its place in the dashboard.
function mistakes(dashboard) {
  if (validate(dashboard)) return [];
  return validate.errors
    .filter((e) => e.keyword !== 'if') // What is wrong with "then" is said by itself.
    .map(({ instancePath, message, params }) => {
      const property = params.additionalProperty ?? params.missingProperty;
      const place = property === undefined ? instancePath : `${instancePath}/${property}`;
      return { place, message: `${place} ${message} ${params.allowedValues ?? ''}`.trim() };
    });
}

// What is changed, each time to what Grafana does not know (undefined: taken away),
// and what below it is wrong then. Of a list, a word is the first of that type.
const broken = [
  ['/schemaVersion', '42'],
  ['/refreshes', '30s'],
  ['/title', ['Node']],
  ['/graphTooltip', 3],
  ['/annotations/list', null],
  ['/annotations/list/0/target/legend', 'x'],
  ['/links/0/type', 'dashboard'],
  ['/templating/list/query/refresh', 3],
  ['/templating/list/query/query/qryType', 'label_values'],
  ['/templating/list/datasource/query', {}],
  ['/panels/row/collapsed', 'no'],
  ['/panels/row/panels/timeseries/type', 'timeserie'],
  ['/templating/list/custom/query', {}],
  ['/panels/timeseries/type', 'timeserie'],
  ['/panels/timeseries/gridPos/w', '8'],
  ['/panels/timeseries/datasource', 'prometheus'],
  ['/panels/timeseries/options/legend/displayMode', 'tabel'],
  ['/panels/timeseries/options/legend/calcs/0', 'lastNotNul'],
  ['/panels/timeseries/options/legends', {}],
  ['/panels/timeseries/options/tooltip/sort', undefined],
  ['/panels/timeseries/fieldConfig/defaults/color/mode', 'palette'],
  ['/panels/timeseries/fieldConfig/defaults/units', 's'],
  ['/panels/timeseries/fieldConfig/defaults/custom/lineWidths', 1],
  ['/panels/timeseries/fieldConfig/defaults/custom/stacking/mode', 'stacked'],
  ['/panels/row/panels/timeseries/fieldConfig/overrides/0/matcher/id', 'byRegex'],
  ['/panels/row/panels/timeseries/fieldConfig/overrides/0/properties/0', { id: 'custom.lineStyles', value: {} }, '/id'],
  ['/panels/row/panels/timeseries/fieldConfig/overrides/0/properties/0', { id: 'custom.lineStyle', value: { fill: 'dashed' } }, '/value/fill'],
  ['/panels/row/panels/timeseries/fieldConfig/overrides/0/properties/0', { id: 'unit', value: 1 }, '/value'],
  ['/panels/timeseries/targets/0/expr', undefined],
  ['/panels/timeseries/targets/0/format', 'timeseries'],
  ['/panels/timeseries/targets/0/legend', 'x'],
  ['/panels/bargauge/options/displayMode', 'table'],
  ['/panels/bargauge/options/reduceOptions/calcs/0', 'latest'],
  ['/panels/bargauge/fieldConfig/defaults/custom', { lineWidth: 1 }, '/lineWidth'],
  ['/panels/bargauge/fieldConfig/defaults/thresholds/steps/0/value', '0.7'],
  ['/panels/bargauge/fieldConfig/overrides/0/properties/0', { id: 'links', value: [{ name: 'x', url: 'y' }] }, '/value/0'],
  ['/panels/stat/options/colorMode', 'backgrounds'],
  ['/panels/stat/options/sparkline', true],
  ['/panels/table/options/cellHeight', 'small'],
  ['/panels/table/options/sortBy/0/displayname', 'x'],
  ['/panels/table/fieldConfig/defaults/custom/cellOptions', { type: 'gauges' }],
  ['/panels/table/fieldConfig/defaults/custom/cellOptions', { type: 'gauge', mode: 'bar' }],
  ['/panels/table/transformations/0/id', 'filterByName'],
  ['/panels/table/transformations/0/options/include/name', 'x'],
  ['/panels/table/transformations/2/options/renamedByName', {}],
];

// find returns where a path leads, or nothing where there is no such place.
function find(value, [name, ...rest]) {
  if (typeof value !== 'object' || value === null) return undefined;
  if (rest.length === 0) return [name];
  const keys = Array.isArray(value) && /\D/.test(name) ? [...value.keys()].filter((i) => value[i].type === name) : [name];
  for (const key of keys) {
    const found = find(value[key], rest);
    if (found) return [key, ...found];
  }
  return undefined;
}

let failed = false;
function fail(...lines) {
  failed = true;
  console.error(lines.join('\n  '));
}

const dashboards = process.argv.slice(2).map((file) => ({ file, dashboard: JSON.parse(readFileSync(file, 'utf8')) }));
for (const { file, dashboard } of dashboards) {
  const found = mistakes(dashboard);
  if (found.length > 0) fail(`${file}:`, ...found.map((m) => m.message));
  else console.log(`${file}: as Grafana's types have it, ${dashboard.panels.length} panels`);
}
if (failed) process.exit(1);
for (const [path, value, below = ''] of broken) {
  const what = `${path} = ${JSON.stringify(value)}`;
  let place;
  const whole = dashboards.find(({ dashboard }) => (place = find(dashboard, path.split('/').slice(1))));
  if (!whole) {
    fail(`no dashboard has a place for ${what}`);
    continue;
  }
  const copy = structuredClone(whole.dashboard);
  const last = place.at(-1);
  const parent = place.slice(0, -1).reduce((object, key) => object[key], copy);
  if (value === undefined) delete parent[last];
  else parent[last] = value;

  const wrong = `/${place.join('/')}${below}`;
  const found = mistakes(copy);
  if (found.length === 0 || found.some((m) => m.place !== wrong && !m.place.startsWith(`${wrong}/`))) {
    fail(`${what}: refused is not what is wrong, ${wrong}, but`, ...found.map((m) => m.message));
  }
}
if (failed) process.exit(1);
console.log(`${broken.length} broken copies: each refused where it is broken`);
