/** Routing statistics as text for a terminal, and as JSON. Pure. */

import type { ModelShape, SeriesSum } from "./encoding.ts";
import { imbalance, meanImbalance, totalLoad, type StatisticsSum } from "./load.ts";
import { NO_PARTNER, type PairLists } from "./pairs.ts";

/** Experts or pairs named per line. */
const TOP = 4;

const BARS = "▁▂▃▄▅▆▇█";

/** What a report is about. */
export interface ReportSubject {
  readonly modelHash: string;
  /** Seconds that the counts are of. */
  readonly windowSeconds: number;
  /** Series are of this selection. */
  readonly statistics: StatisticsSum;
  /** The same selection with decay; absent: every token counts in full. */
  readonly decayed?: DecayedLoad;
  /** Columns of the terminal. */
  readonly width: number;
}

/** Load in which a token counts half after every half-life. */
export interface DecayedLoad {
  readonly halfLifeSeconds: number;
  /** [numMoeLayers, numExperts] */
  readonly load: Float64Array;
}

/** The report: a table of tasks, a bar chart of each MoE layer's experts, the pairs that follow one another most. */
export function formatReport({
  modelHash,
  windowSeconds,
  statistics,
  decayed,
  width,
}: ReportSubject): string {
  const { series, layers, numExperts, topK, modelName } = statistics;
  const tokens = totalTokens(series);
  const heading = [
    `${modelName} ${modelHash.slice(0, 12)}: ${count(tokens)} tokens in the last ${duration(windowSeconds)}`,
    `${layers.length} MoE layers of ${numExperts} experts, ${topK} per token`,
  ];
  return [
    ...heading,
    "",
    ...taskTable(statistics),
    "",
    ...(decayed === undefined
      ? []
      : [`below, tokens count half after every ${duration(decayed.halfLifeSeconds)}`, ""]),
    ...layerCharts(statistics, decayed?.load ?? totalLoad(statistics, series), width),
    "",
    ...pairLines(statistics),
    "",
  ].join("\n");
}

/** The same facts as a JSON value; expert counts by layer. */
export function reportJson(subject: ReportSubject): object {
  const { modelHash, windowSeconds, statistics, decayed } = subject;
  const { series, layers, numExperts, topK, modelName, pairs } = statistics;
  return {
    model: { hash: modelHash, name: modelName, layers, numExperts, topK },
    windowSeconds,
    tokens: totalTokens(series),
    series: series.map(({ task, phase, tokens, expertTokens, weightSums }) => ({
      task,
      phase,
      tokens,
      layers: layers.map((layer, l) => ({
        layer,
        imbalance: imbalance(row(expertTokens, l, numExperts)),
        expertTokens: [...row(expertTokens, l, numExperts)],
        weightSums: [...row(weightSums, l, numExperts)],
      })),
    })),
    ...(decayed && {
      decayedLoad: {
        halfLifeSeconds: decayed.halfLifeSeconds,
        layers: layers.map((layer, l) => ({
          layer,
          imbalance: imbalance(row(decayed.load, l, numExperts)),
          expertTokens: [...row(decayed.load, l, numExperts)],
        })),
      },
    }),
    together: layers.map((layer, l) => ({
      layer,
      pairs: pairs.together.sums[l],
      partners: partnersOf(pairs.together, l, numExperts),
    })),
    coactivation: layers.slice(1).map((nextLayer, l) => ({
      layer: layers[l],
      nextLayer,
      pairs: pairs.next.sums[l],
      partners: partnersOf(pairs.next, l, numExperts),
    })),
  };
}

/** Each expert's partners in a layer with the tokens that chose both, most frequent first. */
function partnersOf(lists: PairLists, layer: number, numExperts: number): [number, number][][] {
  const { topN, partners, counts } = lists;
  return Array.from({ length: numExperts }, (_, expert) => {
    const from = (layer * numExperts + expert) * topN;
    return [...partners.subarray(from, from + topN)].flatMap((partner, i): [number, number][] =>
      partner === NO_PARTNER ? [] : [[partner, counts[from + i]]],
    );
  });
}

/** The list of models, one line each. */
export function formatModels(
  models: readonly {
    readonly modelHash: string;
    readonly shape?: ModelShape;
    readonly lastFlushAt: number;
  }[],
  now: number,
): string {
  const lines = models.map(({ modelHash, shape, lastFlushAt }) => {
    const name = shape?.modelName ?? "(expired)";
    const age = duration(Math.max(0, Math.round(now - lastFlushAt)));
    return `  --model-hash ${modelHash.slice(0, 12)}  ${name}, last seen ${age} ago`;
  });
  return ["Several models have statistics here; choose one:", ...lines, ""].join("\n");
}

function taskTable(statistics: StatisticsSum): string[] {
  const { series, numExperts, layers } = statistics;
  const all = totalTokens(series);
  const rows = series.map((one) => [
    one.task,
    one.phase,
    count(one.tokens),
    percent(one.tokens / all),
    meanImbalance(one.expertTokens, numExperts).toFixed(2),
    busiest(one.expertTokens, one.tokens, (i) => {
      const layer = layers[Math.floor(i / numExperts)];
      return `layer ${layer} expert ${i % numExperts}`;
    }),
  ]);
  const header = ["task", "phase", "tokens", "share", "imbalance", "most chosen (share of tokens)"];
  return table([header, ...rows], [false, false, true, true, true, false]);
}

function layerCharts(statistics: StatisticsSum, load: Float64Array, width: number): string[] {
  const { layers, numExperts, topK } = statistics;
  const rows = layers.map((layer, l) => {
    const ofLayer = row(load, l, numExperts);
    const tokens = ofLayer.reduce((sum, one) => sum + one, 0) / topK || 1;
    return [
      String(layer),
      imbalance(ofLayer).toFixed(2),
      percent(Math.max(...ofLayer) / tokens),
      busiest(ofLayer, tokens, String),
    ];
  });
  const header = ["layer", "imbalance", "top share", "most chosen experts (share of tokens)"];
  const lines = table([header, ...rows], [true, true, true, false]);
  const columns = Math.max(8, Math.min(numExperts, width - 8));
  return [
    ...lines,
    "",
    `load of experts 0 to ${numExperts - 1} in each layer, █ its busiest, · never chosen`,
    ...layers.flatMap((layer, l) => barLines(layer, row(load, l, numExperts), columns)),
  ];
}

/** A layer's experts as bars, `columns` to a line. */
function barLines(layer: number, load: Float64Array, columns: number): string[] {
  const max = Math.max(...load);
  const bars = Array.from(load, (tokens) =>
    tokens === 0 ? "·" : BARS[Math.round((tokens / max) * (BARS.length - 1))],
  );
  const lines: string[] = [];
  for (let at = 0; at < bars.length; at += columns) {
    const label = at === 0 ? String(layer) : "";
    lines.push(`${label.padStart(5)}  ${bars.slice(at, at + columns).join("")}`);
  }
  return lines;
}

function pairLines({ layers, numExperts, pairs }: StatisticsSum): string[] {
  const together = layers.map((layer, l) =>
    pairRow(String(layer), strongest(pairs.together, l, numExperts, "+"), pairs.together.sums[l]),
  );
  const next = layers
    .slice(1)
    .map((nextLayer, l) =>
      pairRow(
        `${layers[l]}→${nextLayer}`,
        strongest(pairs.next, l, numExperts, "→"),
        pairs.next.sums[l],
      ),
    );
  const sections = [
    ["layer", "experts that one token chooses together most, all tasks (share of pairs)", together],
    ["layers", "experts that follow one another most, all tasks (share of pairs)", next],
  ] as const;
  const lines: string[] = [];
  for (const [head, title, rows] of sections) {
    const counted = rows.filter((cells) => cells.length > 0);
    if (counted.length === 0) continue;
    if (lines.length > 0) lines.push("");
    lines.push(...table([[head, title], ...counted], [true, false]));
  }
  return lines.length === 0 ? ["no co-activation counted in this window"] : lines;
}

function pairRow(layer: string, pairs: readonly Pair[], sum: number): string[] {
  if (sum === 0) return [];
  return [layer, pairs.map(({ name, count }) => `${name} ${percent(count / sum)}`).join(", ")];
}

/** A pair of experts. */
interface Pair {
  readonly name: string;
  readonly count: number;
}

/** The pairs of a layer with the largest counts, largest first; of two orders of the same experts one. */
function strongest(lists: PairLists, layer: number, numExperts: number, sign: "+" | "→"): Pair[] {
  const all = partnersOf(lists, layer, numExperts).flatMap((partners, expert) =>
    partners.flatMap(([partner, count]) =>
      sign === "+" && partner < expert ? [] : [{ name: `${expert}${sign}${partner}`, count }],
    ),
  );
  return all.sort((a, b) => b.count - a.count).slice(0, TOP);
}

/** The largest counts with their names and shares of `whole`, largest first, ties by lower index. */
function busiest(counts: Float64Array, whole: number, name: (index: number) => string): string {
  const indices = Array.from(counts.keys()).filter((i) => counts[i] > 0);
  indices.sort((a, b) => counts[b] - counts[a] || a - b);
  return indices
    .slice(0, TOP)
    .map((i) => `${name(i)} ${percent(counts[i] / whole)}`)
    .join(", ");
}

function table(rows: readonly (readonly string[])[], alignRight: readonly boolean[]): string[] {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((cells) => cells[column].length)));
  return rows.map((cells) =>
    cells
      .map((cell, column) =>
        alignRight[column] ? cell.padStart(widths[column]) : cell.padEnd(widths[column]),
      )
      .join("  ")
      .trimEnd(),
  );
}

function row(values: Float64Array, index: number, length: number): Float64Array {
  return values.subarray(index * length, (index + 1) * length);
}

function totalTokens(series: readonly SeriesSum[]): number {
  return series.reduce((sum, one) => sum + one.tokens, 0);
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)}%`;
}

function duration(seconds: number): string {
  if (seconds >= 120 && seconds % 60 === 0) return `${seconds / 60} min`;
  return `${seconds} s`;
}
