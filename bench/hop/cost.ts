/** The cost of a hop from measured times, beside its floor. Pure. */

import { median } from "../load/statistics.ts";

/** What was measured with one number of shards, milliseconds; every list may be in any order. */
export interface HopMeasurement {
  readonly shards: number;
  /** Time per output token of one stream, one per request. */
  readonly tpotMs: readonly number[];
  /** Round trips of one dispatch's bytes to as many echo processes at once. */
  readonly echoMs: readonly number[];
}

/** Device round trips of one dispatch's bytes, milliseconds. */
export interface DeviceMeasurement {
  readonly readBackMs: readonly number[];
  readonly writeRunReadMs: readonly number[];
}

/** The cost of a hop with one number of shards: medians, milliseconds. */
export interface HopCost {
  readonly shards: number;
  readonly tpotMs: number;
  /** (TPOT with shards − TPOT local) / MoE layers. */
  readonly costMs: number;
  readonly echoMs: number;
  readonly readBackMs: number;
  readonly writeRunReadMs: number;
  /** echo + read-back + write-run-read. */
  readonly floorMs: number;
  /** cost / floor. */
  readonly ratio: number;
}

/** Costs of the measurements with shards against the one without. Throws where that one is missing. */
export function hopCosts(
  measurements: readonly HopMeasurement[],
  device: DeviceMeasurement,
  numMoeLayers: number,
): HopCost[] {
  const local = measurements.find(({ shards }) => shards === 0);
  if (!local) throw new Error("the cost of a hop needs a measurement without shards");
  const localMs = median(local.tpotMs);
  const readBackMs = median(device.readBackMs);
  const writeRunReadMs = median(device.writeRunReadMs);
  return measurements
    .filter(({ shards }) => shards > 0)
    .map(({ shards, tpotMs: times, echoMs: echoes }) => {
      const tpotMs = median(times);
      const echoMs = median(echoes);
      const costMs = (tpotMs - localMs) / numMoeLayers;
      const floorMs = echoMs + readBackMs + writeRunReadMs;
      const ratio = costMs / floorMs;
      return { shards, tpotMs, costMs, echoMs, readBackMs, writeRunReadMs, floorMs, ratio };
    });
}

/** A Markdown table: the local TPOT, then each number of shards with its cost and floor. */
export function hopTable(localTpotMs: number, costs: readonly HopCost[]): string {
  const ms = (value: number) => value.toFixed(3);
  const rows = costs.map((cost) =>
    [
      cost.shards,
      ms(cost.tpotMs),
      (cost.tpotMs / localTpotMs).toFixed(2),
      ms(cost.costMs),
      ms(cost.echoMs),
      ms(cost.readBackMs),
      ms(cost.writeRunReadMs),
      ms(cost.floorMs),
      cost.ratio.toFixed(2),
    ].join(" | "),
  );
  return [
    "| shards | TPOT ms | × local | cost of a hop ms | echo ms | read-back ms | write-run-read ms | floor ms | cost / floor |",
    "|---|---|---|---|---|---|---|---|---|",
    `| 0 | ${ms(localTpotMs)} | 1.00 | | | | | | |`,
    ...rows.map((row) => `| ${row} |`),
  ].join("\n");
}
