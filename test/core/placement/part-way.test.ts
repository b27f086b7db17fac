import assert from "node:assert/strict";
import { test } from "node:test";

import type { LayerReplicas } from "../../../core/placement/placement.ts";
import {
  planPlacement,
  type PlacedLayers,
  type PlannerInput,
} from "../../../core/placement/planner.ts";
import { seededRandom } from "../../../core/random.ts";
import { plannerInput } from "./inputs.ts";

const NUM_EXPERTS = 8;
/** Far enough that a layer is several times as fast without the shard. */
const FAR_SECONDS = 3000;
const STEPS = 1e9;

/** Layers with every second expert on a near shard, the others on one that has become far away. */
function strandedAt(
  room: readonly number[],
  numLayers: number,
  holdersOf: (expert: number) => readonly number[] = (expert) => [expert % 2],
): PlannerInput {
  const random = seededRandom(numLayers);
  const loads = Array.from({ length: numLayers }, () =>
    Array.from({ length: NUM_EXPERTS }, () => 10 + Math.round(40 * random())),
  );
  const layer: LayerReplicas = Array.from({ length: NUM_EXPERTS }, (_, expert) => {
    const ranks = holdersOf(expert);
    return ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
  });
  return plannerInput({
    loads,
    room,
    shards: [{}, { rttSeconds: FAR_SECONDS }],
    current: { epoch: 1, layers: new Map(loads.map((_, index) => [index, layer])) },
  });
}

/** Plans from one placement to the next until nothing moves. */
function journey(input: PlannerInput, bytes: number) {
  const loads: number[] = [];
  const saved: number[] = [];
  let layers: PlacedLayers = input.current!.layers;
  for (let epoch = 1; epoch <= 60; epoch++) {
    const plan = planPlacement({
      ...input,
      current: { epoch, layers },
      moves: { bytes, steps: STEPS },
    });
    if (plan.stages.length === 0) return { layers, loads, saved, seconds: plan.why.secondsAfter };
    const { secondsBefore, secondsAfter, movedBytes } = plan.why;
    assert.equal(plan.target, plan.stages.at(-1));
    loads.push(movedBytes);
    saved.push(1 - secondsAfter / secondsBefore!);
    layers = plan.target;
  }
  throw new Error(`60 plans, and still something moves: ${loads.join(", ")} bytes`);
}

function copiesOn(layers: PlacedLayers, rank: number): number {
  return [...layers.values()].flat(2).filter((copy) => copy.rank === rank).length;
}

// Four copies of each layer are to be loaded: half a layer saves nothing, as the other half waits for the far shard still.
for (const [bytes, perPlan] of [
  [100, [16]],
  [9, [8, 8]],
  [5, [4, 4, 4, 4]],
  [1, [4, 4, 4, 4]],
] as const) {
  test(`a shard that became far away is left layer by layer, plan after plan, where a plan may load ${bytes} of 16 experts`, () => {
    const { layers, loads } = journey(strandedAt([40, 40], 4), bytes);
    assert.deepEqual(loads, perPlan);
    assert.equal(copiesOn(layers, 1), 0);
  });
}

test("nothing moves that need not where the move budget is 0", () => {
  const input = strandedAt([40, 40], 4);
  assert.deepEqual(journey(input, 0).loads, []);
});

test("of many layers a plan takes as many as save a part of the step that is worth an epoch", () => {
  const { layers, loads, saved } = journey(strandedAt([200, 200], 24), 1);
  assert.equal(copiesOn(layers, 1), 0);
  assert.ok(loads.length > 4 && loads.length < 24, `${loads.join(", ")} bytes`);
  for (const part of saved) assert.ok(part >= 0.1, `${part}`);
});

test("spare copies in a full near shard give way to layers that leave the far one", () => {
  // The near shard is full: half of its copies are spare ones.
  const input = strandedAt([24, 40], 4, (expert) => (expert < 2 ? [1] : expert < 6 ? [0, 1] : [0]));
  const fresh = planPlacement({ ...input, current: undefined });
  const { seconds, loads } = journey(input, 3);
  assert.ok(loads.length > 1, `${loads.join(", ")} bytes`);
  assert.ok(seconds <= 1.02 * fresh.why.secondsAfter, `${seconds}, ${fresh.why.secondsAfter}`);
});

test("layers go to the far shard to make room for others on the near one, which has room for some only", () => {
  const input = strandedAt([16, 40], 4);
  const fresh = planPlacement({ ...input, current: undefined });
  const before = planPlacement({ ...input, moves: { bytes: 0, steps: STEPS } }).why.secondsAfter;
  const { seconds } = journey(input, 8);
  assert.ok(fresh.why.secondsAfter < 0.8 * before);
  assert.ok(seconds <= 1.02 * fresh.why.secondsAfter, `${seconds}, ${fresh.why.secondsAfter}`);
});
