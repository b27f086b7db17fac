import assert from "node:assert/strict";
import { test } from "node:test";

import type { ExpertFormat } from "../../../../core/expert-format.ts";
import { moeLayers } from "../../../../core/model/config.ts";
import { readModelConfig } from "../../../../core/model/load-config.ts";
import { layerTimes, stepSeconds } from "../../../../core/placement/cost.ts";
import type { LayerReplicas } from "../../../../core/placement/placement.ts";
import { planPlacement } from "../../../../core/placement/planner.ts";
import { formatCosts } from "../../../../router-service/cluster/planning/format-costs.ts";
import {
  plannerInput,
  type ShardFacts,
} from "../../../../router-service/cluster/planning/planner-input.ts";
import { TINY_MODEL } from "../../../../bench/rig/cluster.ts";

const config = await readModelConfig(TINY_MODEL);
const layers = moeLayers(config);
const { numExperts } = config;

const speed = (format: ExpertFormat, secondsPerExpert: number, secondsPerPair: number) => ({
  format,
  secondsPerExpert,
  secondsPerPair,
});

const shardOf = (rank: number, formats: ShardFacts["formats"]): ShardFacts => ({
  rank,
  memoryBytes: 1e9,
  draining: false,
  secondsPerPair: 1e-3,
  rttSeconds: 1e-5,
  bytesPerSecond: 1e12,
  loadBytesPerSecond: 1e12,
  ...(formats && { formats }),
});

/** The input for experts of which the first half of each layer is in another format. */
const inputOf = (shards: readonly ShardFacts[], load: Float64Array, narrow: ExpertFormat = "f16") =>
  plannerInput({
    config,
    formatOf: (_, expert) => (expert < numExperts / 2 ? narrow : "f16"),
    wire: "f16",
    shards,
    expected: { load, deviation: new Float64Array(load.length) },
    steps: [load],
    moves: { bytes: 1e12, steps: 1e9 },
    minCopies: 1,
  });

const loadOf = (of: (expert: number) => number) =>
  Float64Array.from({ length: layers.length * numExperts }, (_, cell) => of(cell % numExperts));

test("what pairs were measured to take stays what the load takes, however a shard divides it", () => {
  const load = loadOf((expert) => (expert % 3 === 0 ? 9 : 0.4));
  const everything: LayerReplicas = Array.from({ length: numExperts }, () => [
    { rank: 0, share: 1 },
  ]);
  const placed = new Map(layers.map((layer) => [layer, everything]));
  for (const [formats, narrow] of [
    [[], "f16"],
    [[speed("f16", 2e-3, 1e-4)], "f16"],
    [[speed("f16", 4e-4, 1e-4), speed("int8", 1e-4, 3e-4)], "int8"],
  ] as const) {
    const input = inputOf([shardOf(0, formats)], load, narrow);
    const [time] = layerTimes(input, placed);
    const pairs = load.subarray(0, numExperts).reduce((sum, one) => sum + one, 0);
    const compute = time.shardSeconds[0] - input.shards[0].rttSeconds;
    assert.ok(Math.abs(compute / (pairs * 1e-3) - 1) < 0.02, `${compute} s for ${pairs} pairs`);
  }
});

test("experts in a format that takes longer are shared out as such, in what reading and what pairs take", () => {
  const load = loadOf(() => 4);
  for (const [wide, narrow] of [
    [speed("f16", 0, 3e-4), speed("int8", 0, 1e-4)],
    [speed("f16", 3e-3, 1e-6), speed("int8", 1e-3, 1e-6)],
  ]) {
    const formats = [wide, narrow];
    const input = inputOf([shardOf(0, formats), shardOf(1, formats)], load, "int8");
    const { target } = planPlacement({ ...input, shards: halfEach(input) });
    const work = [0, 0];
    for (const [expert, copies] of (target.get(layers[0]) ?? []).entries()) {
      for (const { rank, share } of copies) work[rank] += share * (expert < numExperts / 2 ? 1 : 3);
    }
    assert.ok(Math.abs(work[0] - work[1]) <= 1, `${work.join(" and ")} of work`);
  }
});

test("where reading dominates, shards share out experts rather than their pairs", () => {
  // One expert has as many pairs as all others.
  const load = loadOf((expert) => (expert === 0 ? 4 * (numExperts - 1) : 4));
  const splitAt = (end: number) => {
    const replicas = Array.from({ length: numExperts }, (_, expert) => [
      { rank: Number(expert >= end), share: 1 },
    ]);
    return new Map(layers.map((layer) => [layer, replicas]));
  };
  const evenPairs = splitAt(1);
  const evenExperts = splitAt(numExperts / 2);
  for (const [formats, better, worse] of [
    [[speed("f16", 0, 1e-4)], evenPairs, evenExperts],
    [[speed("f16", 1e-2, 1e-6)], evenExperts, evenPairs],
  ] as const) {
    const input = inputOf([shardOf(0, formats), shardOf(1, formats)], load);
    const [least, most] = [stepSeconds(input, better), stepSeconds(input, worse)];
    assert.ok(least < 0.8 * most, `${least} s, ${most} s`);
    const { why } = planPlacement(input);
    assert.ok(
      why.secondsAfter <= 1.001 * stepSeconds(input, better),
      `${why.secondsAfter} s, ${stepSeconds(input, better)} s by hand`,
    );
  }
});

test("a format that no shard measured counts as the commonest does; one slip of the clock is bounded", () => {
  const formats = ["f16", "f16", "int8"] as const;
  const load = Float64Array.of(1, 1, 1);
  assert.equal(formatCosts({ formats, load }, [[speed("f16", 1, 1)]]).work, undefined);
  const slipped = [[speed("f16", 1e-9, 1), speed("int8", 1, 1e-9)]];
  const { work, reads } = formatCosts({ formats, load }, slipped);
  assert.deepEqual([...(reads ?? [])], [1, 1, 16]);
  assert.deepEqual([...(work ?? [])], [1, 1, 1 / 16]);
});

/** The shards with room for three quarters of all bytes each: mostly one copy of each expert. */
function halfEach({ shards, bytes }: ReturnType<typeof plannerInput>) {
  const all = bytes.reduce((sum, one) => sum + one, 0);
  return shards.map((shard) => Object.assign({}, shard, { memoryBytes: 0.75 * all }));
}
