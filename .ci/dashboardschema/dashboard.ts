// What a dashboard of ours may hold, said in the types of Grafana's own packages.
// These leave open what depends on the kind of a panel, a variable or an override;
// here each kind gets its own.
//
// Where this is laxer than Grafana's types:
//   - Options and custom fields may be left out: Grafana puts the plugin's defaults there.
//   - A variable has a definition, and an annotation of Prometheus has titleFormat,
//     textFormat, tagKeys and useValueForTime: Grafana reads them and has no type for them.
import type { FieldMatcherID, ReducerID } from '@grafana/data';
import type { FilterFieldsByNameTransformerOptions } from '@grafana/data/dist/types/transformations/transformers/filterByName';
import type { MergeTransformerOptions } from '@grafana/data/dist/types/transformations/transformers/merge';
import type { OrganizeFieldsTransformerOptions } from '@grafana/data/dist/types/transformations/transformers/organize';
import type { PromQuery, PromVariableQuery } from '@grafana/prometheus';
import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as timeseries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';
import type * as raw from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type { DataLink } from '@grafana/schema/dist/types/schema/dashboard/v2/types.spec.gen';

type With<T, Changes> = Omit<T, keyof Changes> & Changes;

export type Dashboard = With<raw.Dashboard, {
  panels: Panel[];
  templating: { list: Variable[] };
  annotations: { list: Annotation[] };
}>;

/** @discriminator type */
type Panel =
  | With<raw.RowPanel, { panels: Inside[] }>
  | PanelOf<'bargauge', Reduced<bargauge.Options>, {}>
  | PanelOf<'stat', Reduced<stat.Options>, {}>
  | PanelOf<'table', table.Options, table.FieldConfig>
  | PanelOf<'timeseries', Legend<timeseries.Options>, timeseries.FieldConfig>;

/** @discriminator type */
type Inside =
  | PanelOf<'bargauge', Reduced<bargauge.Options>, {}>
  | PanelOf<'stat', Reduced<stat.Options>, {}>
  | PanelOf<'table', table.Options, table.FieldConfig>
  | PanelOf<'timeseries', Legend<timeseries.Options>, timeseries.FieldConfig>;

type PanelOf<Kind extends string, Options, Custom> = With<raw.Panel, {
  type: Kind;
  options: Partial<Options>;
  fieldConfig: {
    defaults: With<raw.FieldConfig, { custom?: Partial<Custom>; links?: DataLink[] }>;
    overrides: { matcher: With<raw.MatcherConfig, { id: FieldMatcherID }>; properties: { id: string; value: unknown }[] }[];
  };
  targets: Query[];
  transformations?: Transformation[];
}>;

// The names of reductions are plain strings in the types of options.
type Reduced<Options extends { reduceOptions: unknown }> = With<Options, { reduceOptions: Calcs<Options['reduceOptions']> }>;
type Legend<Options extends { legend: unknown }> = With<Options, { legend: Calcs<Options['legend']> }>;
type Calcs<T> = With<T, { calcs: ReducerID[] }>;

type Query = Omit<PromQuery, 'scopes' | 'adhocFilters'>;

/** @discriminator id */
type Transformation =
  | TransformationOf<'filterFieldsByName', FilterFieldsByNameTransformerOptions>
  | TransformationOf<'merge', MergeTransformerOptions>
  | TransformationOf<'organize', OrganizeFieldsTransformerOptions>;
type TransformationOf<ID extends string, Options> = With<raw.DataTransformerConfig, { id: ID; options: Options }>;

/** @discriminator type */
type Variable =
  | With<raw.VariableModel, { type: 'datasource'; query: string }>
  | With<raw.VariableModel, { type: 'custom'; query: string }>
  | With<raw.VariableModel, { type: 'textbox'; query: string }>
  | With<raw.VariableModel, { type: 'query'; query: PromVariableQuery; definition: string }>;

type Annotation = With<raw.AnnotationQuery, {
  target: Query;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
  useValueForTime?: boolean;
}>;
