// Makes a fleet of very many nodes of the few that a running Prometheus has scraped and
// recorded by our rules, for pictures: the nodes in trouble are there some times each,
// every other one is a quiet one, each a little different. It writes what the fleet's
// dashboard reads, for promtool to make blocks of:
//
//	node fleet.mjs --prometheus=http://localhost:9090 --nodes=10000 --at=2026-01-31T12:00:00Z >fleet.om
//	promtool tsdb create-blocks-from openmetrics fleet.om data
import { once } from 'node:events';
import { parseArgs } from 'node:util';

const { values: o } = parseArgs({
  options: {
    prometheus: { type: 'string', default: 'http://localhost:9090' },
    nodes: { type: 'string', default: '10000' },
    ill: { type: 'string', default: '.' }, // which nodes in trouble, a regular expression
    copies: { type: 'string', default: '1' }, // of each of them
    lag: { type: 'string', default: '60' }, // seconds by which each copy is behind the one before it
    clusters: { type: 'string', default: 'eu-1,us-1,us-2,ap-1' },
    at: { type: 'string' }, // the end; now by default
    last: { type: 'string', default: '720' }, // seconds of the nodes in trouble; of quiet ones there are five minutes
    step: { type: 'string', default: '30' },
  },
});
const step = Number(o.step), to = Math.floor((o.at ? Date.parse(o.at) / 1000 : Date.now() / 1000) / step) * step, from = to - Number(o.last);
const clusters = o.clusters.split(','), nodes = Number(o.nodes), quietFrom = to - 300;

async function ask(query) {
  const response = await fetch(`${o.prometheus}/api/v1/query_range`, { method: 'POST', body: new URLSearchParams({ query, start: from, end: to, step }) });
  const answer = await response.json();
  if (answer.status !== 'success') throw new Error(`${query}: ${answer.error}`);
  return answer.data.result;
}

const ofNodes = await ask(`{__name__=~"instance(_resource)?:sockpressure_(saturation:max5m|refusals:rate5m|collectors_failing:count)|ALERTS|sockpressure_(saturation_holder|cgroup_memory_saturation|saturation_peak)_ratio|process_start_time_seconds|job_resource_netns:.*",instance!=""}`);
const messages = await ask('job_message:sockpressure_kernel_messages:increase5m');
const refusals = await ask('job_resource:sockpressure_netns_refusals:rate5m');

const seeds = new Map();
for (const s of ofNodes) seeds.set(s.metric.instance, [...(seeds.get(s.metric.instance) ?? []), s]);
// The lab's nodes are guests whose exporter is not in the network namespace that it thinks.
const fires = (s) => s.metric.__name__ === 'ALERTS' && s.metric.severity !== 'info' && s.values.at(-1)[0] === to && !/Wrong/.test(s.metric.alertname);
const ill = [], quiet = [];
for (const [name, series] of seeds) {
  if (series.some(fires) && new RegExp(o.ill).test(name)) ill.push(name);
  else if (!series.some((s) => s.metric.__name__ === 'ALERTS') && /^idle/.test(name)) quiet.push(name);
}
if (quiet.length === 0) throw new Error('no quiet node');

// random is the same in each run.
let state = 1;
const random = () => ((state = (state * 48271) % 2147483647) / 2147483647);

// Where the nodes in trouble are among all.
const place = new Map();
for (let copy = 0; copy < Number(o.copies); copy++) {
  for (const seed of ill) {
    let at;
    do at = Math.floor(random() * nodes); while (place.has(at));
    place.set(at, { seed, lag: Math.floor((copy * Number(o.lag)) / step) * step });
  }
}

const families = [...new Set(ofNodes.map((s) => s.metric.__name__))].sort();
const inCluster = new Map(clusters.map((c) => [c, new Map()])); // the highest or the sum, by family, resource and time

async function write(text) {
  if (!process.stdout.write(text)) await once(process.stdout, 'drain');
}

function line(name, labels, value, time) {
  const list = Object.entries(labels).filter(([l, v]) => l !== '__name__' && v !== '').map(([l, v]) => `${l}="${v.replace(/["\\\n]/g, '\\$&')}"`);
  return `${name}{${list.join(',')}} ${value} ${time}\n`;
}

// Where no recording says who holds a limit, somebody made up does.
const holders = [['cart', 'nginx'], ['checkout', 'java'], ['search', 'envoy'], ['api', 'node'], ['queue', 'rabbitmq'], ['', 'kubelet'], ['', 'haproxy']];
for (const name of ill) {
  const held = new Set(seeds.get(name).filter((s) => s.metric.__name__ === 'sockpressure_saturation_holder_ratio').map((s) => s.metric.resource));
  const alerts = seeds.get(name).filter((s) => fires(s) && s.metric.resource && !held.has(s.metric.resource) && !s.metric.netns);
  for (const resource of new Set(alerts.map((s) => s.metric.resource))) {
    const [pod, process] = holders[Math.floor(random() * holders.length)];
    const values = alerts.find((s) => s.metric.resource === resource).values.map(([t]) => [t, 0.55 + 0.4 * random()]);
    seeds.get(name).push({
      metric: { __name__: 'sockpressure_saturation_holder_ratio', resource, process, ...(pod && { owner: `pod/shop/${pod}`, namespace: 'shop', pod: `${pod}-${Math.floor(random() * 90 + 10)}` }) },
      values,
    });
  }
}

// Names as a fleet has them.
const instance = (i) => `node-${String(i).padStart(4, '0')}`;
const clusterOf = (i) => clusters[Math.min(clusters.length - 1, Math.floor((i / nodes) ** 0.7 * clusters.length))];

for (const family of families) {
  state = 7;
  await write(`# TYPE ${family} gauge\n`);
  for (let i = 0; i < nodes; i++) {
    const { seed, lag } = place.get(i) ?? { seed: quiet[i % quiet.length], lag: 0 };
    const factor = 0.4 + 1.2 * random(), isQuiet = !place.has(i);
    let text = '';
    for (const s of seeds.get(seed)) {
      if (s.metric.__name__ !== family || /Wrong/.test(s.metric.alertname)) continue;
      const labels = { ...s.metric, instance: instance(i), cluster: clusterOf(i), job: 'sockpressure' };
      for (const [at, raw] of s.values) {
        const time = at + lag;
        if (isQuiet && time < quietFrom || time > to) continue;
        const value = isQuiet && family.includes('saturation') ? Math.min(0.6, raw * factor) : Number(raw);
        text += line(family, labels, value, time);
        const sum = /refusals/.test(family), total = inCluster.get(labels.cluster);
        if (/^instance_resource|_peak_/.test(family)) {
          const key = JSON.stringify([family, labels.resource, time]), had = total.get(key) ?? 0;
          total.set(key, sum ? had + value : Math.max(had, value));
        }
      }
    }
    await write(text);
  }
}
const recorded = {
  'instance_resource:sockpressure_saturation:max5m': 'job_resource:sockpressure_saturation:max5m',
  'instance_resource:sockpressure_refusals:rate5m': 'job_resource:sockpressure_refusals:rate5m',
  sockpressure_saturation_peak_ratio: 'job_resource:sockpressure_saturation_peak:max',
};
for (const [family, name] of Object.entries(recorded)) {
  await write(`# TYPE ${name} gauge\n`);
  for (const [cluster, total] of inCluster) {
    const points = [...total].map(([key, value]) => [...JSON.parse(key), value]).sort((a, b) => a[2] - b[2]);
    for (const [of, resource, time, value] of points) {
      if (of === family) await write(line(name, { cluster, job: 'sockpressure', resource }, value, time));
    }
  }
}
for (const list of [messages, refusals]) {
  if (list.length === 0) continue;
  await write(`# TYPE ${list[0].metric.__name__} gauge\n`);
  for (const s of list) for (const [time, value] of s.values) await write(line(s.metric.__name__, { ...s.metric, cluster: clusters[0], job: 'sockpressure' }, value, time));
}
await write('# EOF\n');
console.error(`${nodes} nodes, ${place.size} in trouble, ${quiet.length} seeds of quiet ones`);
