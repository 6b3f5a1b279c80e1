// The page: a dashboard's JSON and the answers to its queries, drawn by the components
// that Grafana's own panels are made of. What a Grafana does between them (fields from
// answers, overrides, transformations, the grid) is done here by Grafana's libraries or,
// where that is in no library, in a few lines.
import {
  applyFieldOverrides, cacheFieldDisplayNames, createTheme, dataLinksOverrideProcessor, displayNameOverrideProcessor, dateTime,
  FieldConfigOptionsRegistry, FieldType, getFieldDisplayValues, identityOverrideProcessor, numberOverrideProcessor,
  standardTransformers, standardTransformersRegistry, thresholdsOverrideProcessor, transformDataFrame, unitOverrideProcessor,
  valueMappingsOverrideProcessor, ThemeContext, EventBusSrv,
} from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, PanelContextProvider, PortalContainer, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import 'uplot/dist/uPlot.min.css';

const { board, answers, from, to, note, theme: mode } = window.preview;
const theme = createTheme({ colors: { mode } });
const range = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };

// The options of fields that are not of one kind of panel, and how an override sets them.
const processors = {
  displayName: displayNameOverrideProcessor, unit: unitOverrideProcessor, min: numberOverrideProcessor, max: numberOverrideProcessor,
  decimals: numberOverrideProcessor, color: identityOverrideProcessor, noValue: identityOverrideProcessor, links: dataLinksOverrideProcessor,
  mappings: valueMappingsOverrideProcessor, thresholds: thresholdsOverrideProcessor,
};

// registry holds the options that a panel's fields have.
function registry({ defaults, overrides }) {
  const custom = new Set(Object.keys(defaults.custom ?? {}));
  for (const o of overrides) for (const p of o.properties) if (p.id.startsWith('custom.')) custom.add(p.id.slice('custom.'.length));
  const item = (path, process, isCustom) => ({
    id: isCustom ? `custom.${path}` : path, path, name: path, description: '', isCustom, process, override: () => null, editor: () => null, shouldApply: () => true, settings: {},
  });
  return new FieldConfigOptionsRegistry(() => [
    ...Object.entries(processors).map(([path, process]) => item(path, process, false)),
    ...[...custom].map((path) => item(path, identityOverrideProcessor, true)),
  ]);
}

const named = (format, labels) => format.replace(/{{\s*(\w+)\s*}}/g, (_, l) => labels[l] ?? '').trim();

// frames makes of an answer what Grafana's data source for Prometheus does.
function frames(target, result, several) {
  if (target.format !== 'table') {
    return result.map(({ metric, value, values }) => {
      const points = values ?? [value];
      return {
        refId: target.refId, length: points.length,
        fields: [
          { name: 'Time', type: FieldType.time, config: {}, values: points.map((p) => p[0] * 1000) },
          {
            name: 'Value', type: FieldType.number, labels: metric, values: points.map((p) => Number(p[1])),
            config: target.legendFormat ? { displayNameFromDS: named(target.legendFormat, metric) } : {},
          },
        ],
      };
    });
  }
  if (result.length === 0) return [];
  const labels = [...new Set(result.flatMap((s) => Object.keys(s.metric)))].sort();
  return [{
    refId: target.refId, length: result.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: result.map((s) => s.value[0] * 1000) },
      ...labels.map((l) => ({ name: l, type: FieldType.string, config: { filterable: true }, values: result.map((s) => s.metric[l] ?? '') })),
      { name: several ? `Value #${target.refId}` : 'Value', type: FieldType.number, config: {}, values: result.map((s) => Number(s.value[1])) },
    ],
  }];
}

async function fields(panel) {
  let data = panel.targets.flatMap((t) => frames(t, answers[t.expr] ?? [], panel.targets.length > 1));
  if (panel.transformations) data = await lastValueFrom(transformDataFrame(panel.transformations, data));
  const drawn = applyFieldOverrides({
    data, theme, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry(panel.fieldConfig), replaceVariables: (text) => text, timeZone: 'utc',
  });
  cacheFieldDisplayNames(drawn);
  return drawn;
}

function Values({ panel, data, width, height }) {
  const values = () => getFieldDisplayValues({
    data, theme, fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (text) => text, timeZone: 'utc',
  }).filter((v) => data.length > 0);
  const bars = panel.type === 'bargauge';
  return (
    <VizRepeater
      source={data} getValues={values} width={width} height={height} itemSpacing={8} renderCounter={0} minVizHeight={panel.options.minVizHeight} maxVizHeight={panel.options.maxVizHeight}
      orientation={bars ? panel.options.orientation : 'auto'} autoGrid={!bars}
      getAlignmentFactors={(list) => list.reduce((f, v) => ({
        title: (v.display.title ?? '').length > f.title.length ? v.display.title : f.title,
        text: `${v.display.prefix ?? ''}${v.display.text}${v.display.suffix ?? ''}`.length > f.text.length ? `${v.display.text}${v.display.suffix ?? ''}` : f.text,
      }), { title: '', text: '' })}
      renderValue={({ value, width, height, alignmentFactors, count }) => bars ? (
        <BarGauge
          value={value.display} display={value.view?.getFieldDisplayProcessor(value.colIndex)} field={value.field} theme={theme} width={width} height={height} alignmentFactors={alignmentFactors}
          orientation={panel.options.orientation} displayMode={panel.options.displayMode} showUnfilled={panel.options.showUnfilled} valueDisplayMode={panel.options.valueMode}
          namePlacement={panel.options.namePlacement} itemSpacing={8} isOverflow={false}
        />
      ) : (
        <BigValue
          value={value.display} count={count} theme={theme} width={width} height={height} colorMode={panel.options.colorMode} graphMode={panel.options.graphMode}
          justifyMode={panel.options.justifyMode} textMode={panel.options.textMode} wideLayout={panel.options.wideLayout}
        />
      )}
    />
  );
}

// Marks draws annotations as Grafana does: a dashed line, and a triangle below it.
function marks(builder) {
  const events = board.annotations.list.flatMap((a) => (answers[a.target.expr] ?? []).flatMap((s) => {
    if (a.useValueForTime) return [...new Set(s.values.map((v) => Number(v[1])))].map((time) => ({ time, color: a.iconColor }));
    const times = s.values.filter((v) => Number(v[1]) > 0).map((v) => v[0] * 1000);
    return times.filter((t, i) => i === 0 || t - times[i - 1] > 60000 * 1.5).map((time) => ({ time, color: a.iconColor }));
  })).filter((e) => e.time > from * 1000 && e.time <= to * 1000);
  builder.addHook('draw', (u) => {
    u.ctx.save();
    for (const e of events) {
      const x = Math.round(u.valToPos(e.time, 'x', true));
      u.ctx.strokeStyle = u.ctx.fillStyle = theme.visualization.getColorByName(e.color);
      u.ctx.lineWidth = 1;
      u.ctx.setLineDash([5, 5]);
      u.ctx.beginPath();
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
      u.ctx.stroke();
      u.ctx.beginPath();
      u.ctx.moveTo(x, u.bbox.top + u.bbox.height);
      u.ctx.lineTo(x - 4, u.bbox.top + u.bbox.height + 6);
      u.ctx.lineTo(x + 4, u.bbox.top + u.bbox.height + 6);
      u.ctx.fill();
    }
    u.ctx.restore();
  });
}

function Lines({ panel, data, width, height }) {
  let marked;
  return (
    <PanelContextProvider value={{ eventsScope: 'global', eventBus: new EventBusSrv(), sync: () => 0, canAddAnnotations: () => false }}>
      <TimeSeries frames={data} structureRev={1} timeRange={range} timeZone="utc" width={width} height={height} legend={panel.options.legend} options={panel.options}>
        {(builder) => {
          if (marked !== builder) marks((marked = builder));
          return null;
        }}
      </TimeSeries>
    </PanelContextProvider>
  );
}

function Table({ panel, data, width, height }) {
  return (
    <TableNG
      data={data[0]} width={width} height={height} noHeader={!panel.options.showHeader} sortBy={panel.options.sortBy} cellHeight={panel.options.cellHeight}
      enablePagination={false} timeRange={range} structureRev={1} fieldConfig={panel.fieldConfig} getActions={() => []}
    />
  );
}

const kinds = { stat: Values, bargauge: Values, timeseries: Lines, table: Table };

function Panel({ panel, data, width, height }) {
  const Kind = kinds[panel.type];
  const empty = data.every((f) => f.length === 0);
  return (
    <PanelChrome title={panel.title} width={width} height={height} padding={panel.type === 'table' ? 'none' : 'md'}>
      {(w, h) => empty ? <div data-empty={panel.title} style={{ height: h, display: 'grid', placeItems: 'center', color: theme.colors.text.secondary }}>No data</div>
        : <Kind panel={panel} data={data} width={w} height={h} />}
    </PanelChrome>
  );
}

const columns = 24, unit = 30, gap = 8, width = 1600 - 32;
const cell = (width + gap) / columns;

async function main() {
  const used = Object.fromEntries(Object.values(standardTransformers).map((t) => [t.id, t])); // Some are there by two names.
  standardTransformersRegistry.setInit(() => Object.values(used).map((t) => ({ id: t.id, transformation: async () => t, name: t.name, editor: () => null })));
  const drawn = await Promise.all(board.panels.map(async (panel) => ({ panel, data: panel.type === 'row' ? [] : await fields(panel) })));
  const bottom = Math.max(...board.panels.map((p) => p.gridPos.y + p.gridPos.h));
  const format = (t) => new Date(t * 1000).toISOString().slice(11, 16);
  createRoot(document.getElementById('page')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PortalContainer />
      <div style={{ padding: 16, background: theme.colors.background.canvas, width: 1600, boxSizing: 'border-box' }}>
        <div style={{ display: 'flex', gap: 16, alignItems: 'baseline', height: 36 }}>
          <h3 style={{ margin: 0 }}>{board.title}</h3>
          <span style={{ color: theme.colors.text.secondary }}>{format(from)} to {format(to)} UTC{note ? `, ${note}` : ''}</span>
        </div>
        <div id="board" style={{ position: 'relative', height: bottom * (unit + gap) }}>
          {drawn.map(({ panel, data }) => {
            const { x, y, w, h } = panel.gridPos;
            const width = w * cell - gap, height = h * (unit + gap) - gap;
            return (
              <div key={panel.id} style={{ position: 'absolute', left: x * cell, top: y * (unit + gap), width, height }}>
                {panel.type === 'row' ? <h5 style={{ margin: 0, lineHeight: '30px' }}>{panel.collapsed ? '›' : '⌄'} {panel.title} {panel.collapsed && <small style={{ color: theme.colors.text.secondary }}>({panel.panels.length} panels)</small>}</h5>
                  : <Panel panel={panel} data={data} width={width} height={height} />}
              </div>
            );
          })}
        </div>
      </div>
    </ThemeContext.Provider>,
  );
}

main().catch((error) => { document.body.dataset.error = String(error?.stack ?? error); document.body.append(String(error?.stack ?? error)); });
