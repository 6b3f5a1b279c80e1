// Draws a dashboard with the data of a running Prometheus, by Grafana's own components
// (page.jsx), as a picture; without a Grafana, which needs a server.
//
//	npm ci && node preview.mjs --prometheus=http://localhost:9090 --out=fleet.png ../sockpressure-fleet.json
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';

const { values: o, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    prometheus: { type: 'string', default: 'http://localhost:9090' },
    out: { type: 'string', default: 'dashboard.png' },
    at: { type: 'string' }, // the end of the time shown, as 2026-01-31T12:00:00Z; now by default
    last: { type: 'string', default: '900' }, // seconds of the time shown
    step: { type: 'string', default: '15' }, // seconds between two points, that of the scrapes
    set: { type: 'string', multiple: true, default: [] }, // variables, as instance=node-1
    row: { type: 'string' }, // only the row of this title, open
    theme: { type: 'string', default: 'light' },
    note: { type: 'string', default: '' }, // what the data are
    browser: { type: 'string', default: 'chromium' },
    timings: { type: 'boolean', default: false }, // print how long each panel's queries took
  },
});
if (positionals.length !== 1) throw new Error('want the file of one dashboard');
const board = JSON.parse(readFileSync(positionals[0], 'utf8'));
const step = Number(o.step), to = Math.floor((o.at ? Date.parse(o.at) / 1000 : Date.now() / 1000) / step) * step, from = to - Number(o.last);

const chosen = {
  cluster: '.*', job: '.+', instance: '.+', resource: '.*', netns: '.+', severity: 'critical|warning', top: '20', limit: 'tcp_memory',
  __range: `${o.last}s`, __rate_interval: `${4 * step}s`, __interval: `${step}s`,
  ...Object.fromEntries(o.set.map((s) => [s.slice(0, s.indexOf('=')), s.slice(s.indexOf('=') + 1)])),
};
// The longest name first: one may begin with another.
const names = Object.keys(chosen).sort((a, b) => b.length - a.length);

function choose(expr) {
  for (const name of names) expr = expr.replaceAll(`$${name}`, () => chosen[name]);
  if (/\$\w/.test(expr)) throw new Error(`a variable is not known: ${expr}`);
  return expr;
}

async function ask(expr, instant) {
  const query = new URLSearchParams(instant ? { query: choose(expr), time: to } : { query: choose(expr), start: from, end: to, step });
  const response = await fetch(`${o.prometheus}/api/v1/query${instant ? '' : '_range'}`, { method: 'POST', body: query });
  const answer = await response.json();
  if (answer.status !== 'success') throw new Error(`${choose(expr)}: ${answer.error}`);
  return answer.data.result;
}

// Variables that a query finds: what Grafana puts in for all of its values.
for (const v of board.templating.list) {
  const expr = v.type === 'query' && /^query_result\((.*)\)$/s.exec(v.query.query)?.[1];
  if (!expr) continue;
  const began = Date.now();
  const found = (await ask(expr, true)).map((s) => s.metric.instance.replace(/[\\^$*+?.()|[\]{}]/g, '\\\\$&'));
  chosen[v.name] = found.join('|') || 'none';
  names.push(v.name);
  if (o.timings) console.log(`${Date.now() - began} ms, ${found.length} values: variable ${v.name}`);
}

if (o.row !== undefined) {
  const row = board.panels.find((p) => p.type === 'row' && p.title === o.row);
  if (!row) throw new Error(`no row ${o.row}`);
  const next = board.panels.find((p) => p.type === 'row' && p.gridPos.y > row.gridPos.y)?.gridPos.y ?? Infinity;
  const open = row.collapsed ? row.panels : board.panels.filter((p) => p.gridPos.y > row.gridPos.y && p.gridPos.y < next);
  board.panels = [{ ...row, collapsed: false, panels: [] }, ...open];
  const top = row.gridPos.y;
  for (const p of board.panels) p.gridPos.y -= top;
}

const answers = {};
for (const panel of board.panels.filter((p) => p.type !== 'row')) {
  const began = Date.now();
  let series = 0;
  for (const t of panel.targets) {
    answers[t.expr] = await ask(t.expr, t.instant);
    series += answers[t.expr].length;
  }
  if (o.timings) console.log(`${Date.now() - began} ms, ${series} series: ${panel.title}`);
}
for (const a of board.annotations.list) answers[a.target.expr] = await ask(a.target.expr, false);

const here = new URL('.', import.meta.url).pathname;
const dir = mkdtempSync(join(tmpdir(), 'preview-'));
try {
  await build({
    entryPoints: [join(here, 'page.jsx')], outfile: join(dir, 'page.js'), bundle: true, jsx: 'automatic', minify: true, logLevel: 'error',
    define: { 'process.env.NODE_ENV': '"production"' }, loader: { '.ttf': 'dataurl', '.svg': 'dataurl', '.woff2': 'dataurl' },
  });
  const data = JSON.stringify({ board, answers, from, to, note: o.note, theme: o.theme }).replaceAll('<', '\\u003c');
  writeFileSync(join(dir, 'page.html'), `<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css"><title>${board.title}</title><body><div id="page"></div><script>window.preview=${data}</script><script src="page.js"></script></body>`);
  const height = 36 + 2 * 16 + 38 * Math.max(...board.panels.map((p) => p.gridPos.y + p.gridPos.h));
  const browse = (...more) => execFileSync(o.browser, [
    '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--allow-file-access-from-files', `--user-data-dir=${join(dir, 'profile')}`, '--virtual-time-budget=10000', `--window-size=1600,${height}`, ...more, `file://${join(dir, 'page.html')}`,
  ], { encoding: 'utf8', stdio: ['ignore', 'pipe', process.env.PREVIEW_DEBUG ? 'inherit' : 'ignore'], timeout: 120000, maxBuffer: 1 << 28 });
  const drawn = browse('--dump-dom');
  const wrong = /<body[^>]* data-error="([^"]*)"/.exec(drawn);
  if (wrong || !drawn.includes('id="board"')) throw new Error(`the page is not drawn: ${wrong?.[1]}`);
  browse(`--screenshot=${o.out}`);
} finally {
  rmSync(dir, { recursive: true, force: true });
}
