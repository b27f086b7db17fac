/** A placement as text for a terminal. Pure. */

import { bytesText, countText, secondsText } from "../core/amounts.ts";

/** A shard in a placement, as the API has it. */
export interface ShardBalanceView {
  readonly rank: number | "local";
  readonly experts: number;
  /** Null where it is not known, as of a shard that is away. */
  readonly bytes: number | null;
  readonly memory_bytes: number | null;
  readonly seconds_per_step: number | null;
  readonly state?: string;
  readonly reason?: string | null;
  readonly loss?: {
    readonly experts_without_copy: number;
    readonly seconds: number | null;
    readonly experts_without_room: number;
  } | null;
}

/** GET /v1/placement, as far as it is shown. */
export interface PlacementView {
  readonly epoch: number;
  readonly weights: string;
  readonly experts: string;
  readonly planned_by: string | null;
  readonly planned_at: string | null;
  readonly why: string | null;
  readonly stages_left: number;
  readonly unplaceable: string | null;
  readonly last_decision: string | null;
  readonly lost: {
    readonly experts: number;
    readonly experts_without_room: number | null;
    readonly reason: string | null;
  } | null;
  readonly redis_away: boolean;
  readonly predicted_step_seconds: number | null;
  readonly imbalance: number | null;
  readonly forecast: {
    readonly tokens_per_step: number;
    readonly predictor_errors: Readonly<Record<string, number>> | null;
  } | null;
  readonly next_layer: { readonly on_same_shard: number; readonly by_chance: number } | null;
  readonly shards: readonly ShardBalanceView[];
  readonly layers: readonly {
    readonly layer: number;
    readonly predictor?: string | null;
    /** In the order of the shards. */
    readonly seconds?: readonly (number | null)[] | null;
    readonly experts: readonly (readonly {
      readonly rank: number | "local";
      readonly share: number;
    }[])[];
  }[];
}

/** How it is to look. */
export interface ReportStyle {
  /** Columns of the terminal. */
  readonly width: number;
  readonly colour: boolean;
  /** Unix milliseconds. */
  readonly now: number;
}

const HEAT = " ░▒▓█";
/** In the place of heat, where a shard is away. */
const AWAY = "×";
/** Codes of the terminal's 256 colours, cold to hot. */
const COLOURS = [240, 22, 28, 100, 136, 166, 160];
const LABEL_WIDTH = 7;
const CELL_WIDTH = 8;

/** The whole report: what stands and why, the map, each shard's sums and what its loss would take. */
export function formatPlacement(view: PlacementView, style: ReportStyle): string {
  return [
    ...heading(view, style.now),
    "",
    ...heatMap(view, style),
    "",
    ...shardTable(view.shards),
    "",
  ].join("\n");
}

/** A shard's sums, one line each, with what its loss would take where that is known. */
export function shardTable(shards: readonly ShardBalanceView[]): string[] {
  const withLoss = shards.some(({ loss }) => loss !== undefined);
  const header = ["shard", "experts", "memory", "of", "per step", ...(withLoss ? ["if lost"] : [])];
  const rows = shards.map((shard) => [
    `${shard.rank}${shard.state === undefined || shard.state === "ready" ? "" : ` ${shard.state}`}`,
    String(shard.experts),
    textOf(shard.bytes, bytesText),
    textOf(shard.memory_bytes, bytesText),
    textOf(shard.seconds_per_step, secondsText),
    ...(withLoss ? [lossText(shard)] : []),
  ]);
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((cells) => cells[column].length)));
  return all.map((cells) =>
    cells
      .map((cell, column) =>
        column === 0 || column === 5 ? cell.padEnd(widths[column]) : cell.padStart(widths[column]),
      )
      .join("  ")
      .trimEnd(),
  );
}

function textOf(value: number | null, text: (value: number) => string): string {
  return value === null ? "-" : text(value);
}

function heading(view: PlacementView, now: number): string[] {
  const { epoch, planned_by: by, planned_at: at, why, stages_left: left, unplaceable } = view;
  const age = at === null ? "" : `, ${secondsText(Math.max(0, now - Date.parse(at)) / 1000)} ago`;
  const moving = left === 0 ? "" : `; ${countText(left, "stage")} of its move to come`;
  return [
    `epoch ${epoch}${by === null ? "" : `, planned by ${by}`}${age}${moving}`,
    ...lostLines(view),
    ...(why === null ? [] : [`why: ${why}`]),
    ...(unplaceable === null ? [] : [`can not be placed: ${unplaceable}`]),
    ...(view.redis_away ? ["Redis is away: this router plans alone, only what can not wait"] : []),
    ...lastLookLines(view),
    ...stepLines(view),
    ...forecastLines(view),
    ...nextLayerLines(view),
    `experts in ${view.experts}, other weights in ${view.weights}`,
  ];
}

/** Experts that nobody can compute; the shards' rows say why. */
function lostLines({ lost, layers }: PlacementView): string[] {
  if (lost === null) return [];
  const { experts, experts_without_room: homeless } = lost;
  const all = layers.reduce((sum, layer) => sum + layer.experts.length, 0);
  const room = homeless ? `, ${homeless} of them no room on the shards that are there` : "";
  return [`${experts} of ${all} experts have no living copy${room}`];
}

/** What the planner came to last; a router that does not plan knows it only where nothing can be placed. */
function lastLookLines({ last_decision: decision, unplaceable }: PlacementView): string[] {
  return decision === null || decision === unplaceable ? [] : [`last look: ${decision}`];
}

/** Nothing where experts are lost: there is no step then. */
function stepLines({ lost, predicted_step_seconds: step, imbalance }: PlacementView): string[] {
  if (step === null) return lost === null ? ["no statistics to judge it by"] : [];
  return [
    `experts of a step are expected to take ${secondsText(step)}, imbalance of the shards ${(imbalance ?? 0).toFixed(2)}`,
  ];
}

/** Which predictors have erred least in how many layers, and how much; nothing before any load was measured. */
function forecastLines({ forecast, layers }: PlacementView): string[] {
  const errors = forecast?.predictor_errors ?? {};
  if (Object.keys(errors).length === 0) return [];
  const wins = new Map<string, number>();
  for (const { predictor } of layers) {
    if (predictor) wins.set(predictor, (wins.get(predictor) ?? 0) + 1);
  }
  const said = Object.entries(errors)
    .filter(([name]) => name !== "forecast")
    .sort(([a], [b]) => (wins.get(b) ?? 0) - (wins.get(a) ?? 0) || errors[a] - errors[b])
    .map(([name, error]) => {
      const count = wins.get(name) ?? 0;
      return `${name} ${percentText(error)}${count === 0 ? "" : ` (best in ${countText(count, "layer")})`}`;
    });
  return [
    `forecast of the load was off, summed over a layer's experts, by ${percentText(errors["forecast"])} of its load; its predictors: ${said.join(", ")}`,
  ];
}

function percentText(part: number): string {
  return `${(100 * part).toFixed(1)} %`;
}

function nextLayerLines({ next_layer: next }: PlacementView): string[] {
  if (next === null) return [];
  const [together, chance] = [next.on_same_shard, next.by_chance].map(
    (part) => `${Math.round(100 * part)} %`,
  );
  return [
    `of pairs of a token's experts in one layer and the next, ${together} are on one shard, by chance ${chance}`,
  ];
}

/** Layers down, shards across; narrow cells, without numbers, where the terminal is too small. */
function heatMap({ shards, layers }: PlacementView, { width, colour }: ReportStyle): string[] {
  const wide = LABEL_WIDTH + shards.length * CELL_WIDTH <= width;
  const header = shards.map(({ rank }) => (wide ? String(rank).padStart(CELL_WIDTH) : "")).join("");
  const title = wide
    ? `${"layer".padEnd(LABEL_WIDTH)}${header}`
    : `layers, and shards ${shards[0]?.rank} to ${shards.at(-1)?.rank} from left to right`;
  const rows = layers.map(({ layer, seconds, experts }) => {
    const slowest = Math.max(...(seconds ?? [0]).map((one) => one ?? 0));
    const cells = shards.map(({ rank, state }, index) => {
      const held = experts.filter((copies) => copies.some((copy) => copy.rank === rank)).length;
      if (held > 0 && isAway(state)) return awayText(held, wide);
      const heat = slowest === 0 ? 0 : (seconds?.[index] ?? 0) / slowest;
      return cellText(held, heat, wide, colour);
    });
    return `${String(layer).padEnd(LABEL_WIDTH)}${cells.join("")}`;
  });
  return [title, ...rows];
}

function cellText(held: number, heat: number, wide: boolean, colour: boolean): string {
  const level = held === 0 ? 0 : Math.max(1, Math.round(heat * (HEAT.length - 1)));
  const number = held === 0 ? "·" : String(held);
  const text = wide ? `${HEAT[level].repeat(2)}${number.padStart(4)}` : HEAT[level];
  const pad = wide ? " ".repeat(CELL_WIDTH - 6) : "";
  if (!colour || held === 0) return pad + text;
  const code = COLOURS[Math.round(heat * (COLOURS.length - 1))];
  return `${pad}\u001b[38;5;${code}m${text}\u001b[0m`;
}

/** Copies that no row can be sent to. */
function awayText(held: number, wide: boolean): string {
  return wide ? `${AWAY.repeat(2)}${String(held).padStart(4)}`.padStart(CELL_WIDTH) : AWAY;
}

function isAway(state: string | undefined): boolean {
  return state === "away" || state === "quarantined";
}

function lossText({ rank, loss, state, reason }: ShardBalanceView): string {
  if (rank === "local") return "it is the router itself";
  if (isAway(state)) return `it is ${state}${reason ? `: ${reason}` : ""}`;
  if (loss === undefined || loss === null) return "nothing to mend";
  const { experts_without_copy: experts, experts_without_room: homeless, seconds } = loss;
  if (homeless > 0) return `${homeless} of ${experts} experts have no room elsewhere`;
  if (experts === 0 || seconds === null) return "every expert has another copy";
  return `${experts} experts are elsewhere within ${secondsText(seconds)}`;
}
