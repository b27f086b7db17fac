/** How evenly placements share the recorded routing out: planned on the past, judged on what came next. */

import { RECORDED_SHAPE } from "../routing/recorded.ts";
import {
  eplbSeconds,
  imbalance,
  inputOf,
  ofLayer,
  plannedSeconds,
  staticSeconds,
  type LayerSeconds,
  type Shards,
} from "./contenders.ts";
import {
  countPairs,
  deviation,
  perStep,
  sampleSteps,
  stepsOf,
  traffics,
  type Judged,
  type Traffic,
} from "./routed-load.ts";

/** Steps of the past that the planner is shown. */
const SAMPLED_STEPS = 16;

/** Mean imbalance over layers and windows, or steps, of each contender. */
export interface Figures {
  readonly static: number;
  readonly eplb: number;
  /** EPLB that is told the forecast. */
  readonly eplbTold: number;
  readonly ours: number;
  /** Ours with the plan's shares, not split by the load at hand. */
  readonly oursAsPlanned: number;
  /** Planned on the very window that it is judged on. */
  readonly hindsight: number;
}

/** What a row compares contenders on. */
export interface RowSetting {
  readonly traffic: string;
  readonly numShards: number;
  readonly redundancy: number;
  readonly speeds: "equal" | "unequal";
}

/** One row of the comparison. */
export interface Row extends RowSetting {
  readonly windows: Figures;
  readonly steps: Figures;
}

/** The rows that are asked for, of kinds of traffic × shards × redundancy × speeds; absent: all of them. */
export function* imbalanceRows(
  isAsked: (setting: RowSetting) => boolean = () => true,
): Generator<Row> {
  for (const traffic of traffics()) {
    for (const numShards of [8, 16]) {
      for (const redundancy of [0, 0.125, 0.25]) {
        for (const speeds of ["equal", "unequal"] as const) {
          // Every second shard takes twice as long.
          const secondsPerPair = Array.from({ length: numShards }, (_, shard) =>
            speeds === "unequal" && shard % 2 === 1 ? 2 : 1,
          );
          const setting = { traffic: traffic.name, numShards, redundancy, speeds };
          if (!isAsked(setting)) continue;
          yield { ...setting, ...judge(traffic, { secondsPerPair, redundancy }) };
        }
      }
    }
  }
}

function judge(traffic: Traffic, shards: Shards): Pick<Row, "windows" | "steps"> {
  const windows: Figures[] = [];
  const steps: Figures[] = [];
  for (const judged of traffic.judged) {
    const contenders = plan(judged, shards);
    windows.push(judgeOn([countPairs([judged.future])], contenders, shards));
    const ofSteps = stepsOf([judged.future]).map((step) => countPairs([step]));
    steps.push(judgeOn(ofSteps, contenders, shards));
  }
  return { windows: meanOf(windows), steps: meanOf(steps) };
}

function plan(judged: Judged, shards: Shards): Record<keyof Figures, LayerSeconds> {
  const { future, past, forecast } = judged;
  const ours = plannedSeconds(
    inputOf(shards, perStep(countPairs(forecast)), {
      steps: sampleSteps(forecast, SAMPLED_STEPS),
      uncertainty: deviation(forecast),
    }),
  );
  const hindsight = plannedSeconds(
    inputOf(shards, perStep(countPairs([future])), { steps: sampleSteps([future], SAMPLED_STEPS) }),
  );
  return {
    static: staticSeconds(shards),
    eplb: eplbSeconds(shards, countPairs(past)),
    eplbTold: eplbSeconds(shards, countPairs(forecast)),
    ours: ours.atHand,
    oursAsPlanned: ours.asPlanned,
    hindsight: hindsight.atHand,
  };
}

/** Means over all layers of all loads. */
function judgeOn(
  loads: readonly Float64Array[],
  contenders: Record<keyof Figures, LayerSeconds>,
  shards: Shards,
): Figures {
  return mapFigures((name) => {
    let sum = 0;
    for (const load of loads) {
      for (const index of RECORDED_SHAPE.layers.keys()) {
        sum += imbalance(shards, contenders[name], index, ofLayer(load, index));
      }
    }
    return sum / (loads.length * RECORDED_SHAPE.layers.length);
  });
}

function meanOf(all: readonly Figures[]): Figures {
  return mapFigures((name) => all.reduce((sum, one) => sum + one[name], 0) / all.length);
}

function mapFigures(of: (name: keyof Figures) => number): Figures {
  return {
    static: of("static"),
    eplb: of("eplb"),
    eplbTold: of("eplbTold"),
    ours: of("ours"),
    oursAsPlanned: of("oursAsPlanned"),
    hindsight: of("hindsight"),
  };
}

/** The rows as Markdown, and where ours is worst beside EPLB. */
export function imbalanceTable(rows: readonly Row[]): string {
  const lines = rows.map((row) => {
    const name = `${row.traffic}, ${row.numShards} shards ${row.speeds}, ${100 * row.redundancy} %`;
    const { windows, steps } = row;
    return `| ${name} | ${[windows.static, windows.eplb, windows.ours, windows.oursAsPlanned, windows.hindsight, steps.static, steps.eplb, steps.ours, steps.hindsight].map((value) => value.toFixed(3)).join(" | ")} |`;
  });
  return [
    "| imbalance | window: static | EPLB | ours | ours, plan's shares | hindsight | 64 tokens: static | EPLB | ours | hindsight |",
    `| --- ${"| ---: ".repeat(9)}|`,
    ...lines,
    "",
    ...(["windows", "steps"] as const).map((kind) => summary(rows, kind)),
  ].join("\n");
}

function summary(rows: readonly Row[], kind: "windows" | "steps"): string {
  const behind = rows.map((row) => row[kind].ours - row[kind].eplb);
  const behindTold = rows.map((row) => row[kind].ours - row[kind].eplbTold);
  const mean = (of: (figures: Figures) => number): string =>
    (rows.reduce((sum, row) => sum + of(row[kind]), 0) / rows.length).toFixed(3);
  return (
    `${kind}: means static ${mean((one) => one.static)}, EPLB ${mean((one) => one.eplb)}, EPLB told the forecast ${mean((one) => one.eplbTold)}, ` +
    `ours ${mean((one) => one.ours)}, with the plan's shares ${mean((one) => one.oursAsPlanned)}, hindsight ${mean((one) => one.hindsight)}; ` +
    `ours − EPLB at most ${Math.max(...behind).toFixed(3)}, beside EPLB told the forecast ${Math.max(...behindTold).toFixed(3)}`
  );
}
