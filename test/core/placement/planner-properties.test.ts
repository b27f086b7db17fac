import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { LOCAL_RANK, type LayerReplicas } from "../../../core/placement/placement.ts";
import {
  PlacementError,
  planPlacement,
  type PlacedLayers,
  type Plan,
  type PlannedShard,
  type PlannerInput,
} from "../../../core/placement/planner.ts";

/** Experts of two sizes, so that they may not divide the memory. */
const SIZES = [6, 6, 6, 4];

const cost = fc.integer({ min: 0, max: 20 });

const shard: fc.Arbitrary<Omit<PlannedShard, "rank">> = fc.record({
  memoryBytes: fc.integer({ min: 0, max: 150 }),
  secondsPerPair: fc.integer({ min: 1, max: 10 }),
  secondsPerExpert: cost,
  rttSeconds: cost,
  bytesPerSecond: fc.constantFrom(1, 10, Infinity),
  loadSecondsPerByte: fc.integer({ min: 1, max: 3 }),
  draining: fc.constant(false),
});

/** Clusters with nothing held, experts alike in size or not. */
const cluster: fc.Arbitrary<PlannerInput> = fc
  .record({
    numLayers: fc.integer({ min: 1, max: 4 }),
    numExperts: fc.integer({ min: 1, max: 10 }),
    shards: fc.array(shard, { minLength: 1, maxLength: 6 }),
    hasLocal: fc.boolean(),
    alike: fc.boolean(),
    seed: fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 40, maxLength: 40 }),
    perHop: cost,
    perRow: cost,
    budget: fc.constantFrom(0, 12, 60, Infinity),
    steps: fc.constantFrom(1, 10, 1e6),
    minCopies: fc.constantFrom(1, 1, 2),
  })
  .map(({ numLayers, numExperts, shards, hasLocal, alike, seed, perHop, perRow, ...rest }) => {
    const cells = numLayers * numExperts;
    return {
      layers: Array.from({ length: numLayers }, (_, index) => 2 * index + 1),
      numExperts,
      topK: 2,
      load: Float64Array.from({ length: cells }, (_, cell) => seed[cell % 40] ** 1.5),
      bytes: Float64Array.from({ length: cells }, (_, cell) =>
        alike ? 6 : SIZES[seed[(cell + 7) % 40] % SIZES.length],
      ),
      shards: shards.map((one, index) => ({
        ...one,
        rank: hasLocal && index === 0 ? LOCAL_RANK : index,
      })),
      router: { secondsPerHop: perHop, secondsPerRow: perRow / 100, rowBytesOut: 1, rowBytesIn: 1 },
      moves: { bytes: rest.budget, steps: rest.steps },
      minCopies: rest.minCopies,
      effort: 100,
    };
  });

/** A cluster that holds what was planned for it, and what has changed since. */
const changed = fc
  .record({
    before: cluster,
    loads: fc.array(fc.integer({ min: 0, max: 60 }), { minLength: 40, maxLength: 40 }),
    lost: fc.option(fc.nat(5), { nil: undefined, freq: 1 }),
    draining: fc.option(fc.nat(5), { nil: undefined, freq: 1 }),
    memory: fc.constantFrom(0, 0, 40),
  })
  .map(afterChange)
  .filter((input) => input !== undefined);

/** What a cluster is asked after something changed; undefined where its experts had no room. */
function afterChange({
  before,
  loads,
  lost,
  draining,
  memory,
}: {
  readonly before: PlannerInput;
  readonly loads: readonly number[];
  readonly lost?: number;
  readonly draining?: number;
  readonly memory: number;
}): PlannerInput | undefined {
  const plan = planned(before);
  if (plan === undefined) return undefined;
  const shards = before.shards.map((one, index) => {
    const memoryBytes = one.memoryBytes + memory;
    return Object.assign({}, one, { draining: index === draining, memoryBytes });
  });
  return {
    ...before,
    load: before.load.map((_, cell) => loads[cell % 40]),
    shards: shards.filter((_, index) => index !== lost),
    current: { epoch: 1, layers: plan.target },
  };
}

function planned(input: PlannerInput): Plan | undefined {
  try {
    return planPlacement(input);
  } catch (error) {
    assert.ok(error instanceof PlacementError);
    return undefined;
  }
}

function bytesHeld(input: PlannerInput, placed: PlacedLayers): Map<number, number> {
  const held = new Map<number, number>();
  for (const [index, layer] of input.layers.entries()) {
    for (const [expert, copies] of placed.get(layer)!.entries()) {
      const bytes = input.bytes[index * input.numExperts + expert];
      for (const { rank } of copies) held.set(rank, (held.get(rank) ?? 0) + bytes);
    }
  }
  return held;
}

function united(a: LayerReplicas, b: LayerReplicas): LayerReplicas {
  return a.map((copies, expert) => [
    ...copies,
    ...b[expert].filter(({ rank }) => !copies.some((copy) => copy.rank === rank)),
  ]);
}

/** What is held now, on the shards that are there. */
function live({ current, shards, layers, numExperts }: PlannerInput): PlacedLayers {
  return new Map(
    layers.map((layer) => [
      layer,
      Array.from({ length: numExperts }, (_, expert) =>
        (current?.layers.get(layer)?.[expert] ?? []).filter(({ rank }) =>
          shards.some((one) => one.rank === rank),
        ),
      ),
    ]),
  );
}

function assertPlaced(input: PlannerInput, placed: PlacedLayers): void {
  assert.deepEqual([...placed.keys()], input.layers);
  for (const replicas of placed.values()) {
    assert.equal(replicas.length, input.numExperts);
    for (const copies of replicas) {
      const ranks = copies.map(({ rank }) => rank);
      assert.ok(ranks.length > 0, "an expert without a copy");
      assert.deepEqual(
        ranks,
        [...new Set(ranks)].sort((a, b) => a - b),
      );
      const sum = copies.reduce((total, { share }) => total + share, 0);
      assert.ok(Math.abs(sum - 1) < 1e-9, `shares sum to ${sum}`);
    }
  }
}

test("every expert is placed within every shard's memory, or the bytes are named", () => {
  fc.assert(
    fc.property(cluster, (input) => {
      const plan = planned(input);
      const [size] = input.bytes;
      const alike = input.bytes.every((bytes) => bytes === size);
      const places = input.shards.reduce(
        (sum, { memoryBytes }) => sum + Math.floor(memoryBytes / size),
        0,
      );
      if (alike) assert.equal(plan !== undefined, places >= input.bytes.length);
      if (plan === undefined) return;
      assertPlaced(input, plan.target);
      const held = bytesHeld(input, plan.target);
      for (const { rank, memoryBytes } of input.shards) {
        assert.ok((held.get(rank) ?? 0) <= memoryBytes);
      }
    }),
    { numRuns: 150 },
  );
});

test("the same input gives the same plan", () => {
  fc.assert(
    fc.property(changed, (input) => {
      assert.deepEqual(planned(input), planned(input));
    }),
    { numRuns: 30 },
  );
});

test("on the way no shard's memory is exceeded, and no expert is without a copy that was there before", () => {
  fc.assert(
    fc.property(changed, (input) => {
      const plan = planned(input);
      if (plan === undefined) return;
      assertPlaced(input, plan.target);
      let before = live(input);
      for (const stage of plan.stages) {
        const both = new Map(
          input.layers.map((layer) => [layer, united(before.get(layer)!, stage.get(layer)!)]),
        );
        const held = bytesHeld(input, both);
        const old = bytesHeld(input, before);
        for (const { rank, memoryBytes } of input.shards) {
          const bytes = held.get(rank) ?? 0;
          assert.ok(
            bytes <= memoryBytes || bytes <= (old.get(rank) ?? 0),
            `rank ${rank}: ${bytes}`,
          );
        }
        for (const [layer, replicas] of before) {
          for (const [expert, copies] of replicas.entries()) {
            if (copies.length === 0) continue;
            assert.ok(stage.get(layer)![expert].length > 0);
          }
        }
        before = stage;
      }
      assert.deepEqual(plan.stages.at(-1) ?? plan.target, plan.target);
    }),
    { numRuns: 150 },
  );
});

test("a plan is never worse than staying, what it loads counted in", () => {
  fc.assert(
    fc.property(changed, (input) => {
      if (input.shards.some(({ draining }) => draining)) return;
      const { why, stages } = planPlacement({ ...input, minCopies: 1 });
      if (why.secondsBefore === undefined) return;
      assert.ok(
        why.secondsAfter + why.moveSecondsPerStep <= why.secondsBefore * (1 + 1e-6),
        `${stages.length} stages: ${why.secondsBefore} to ${why.secondsAfter} + ${why.moveSecondsPerStep}`,
      );
    }),
    { numRuns: 150 },
  );
});

test("a draining shard is emptied where the others have room", () => {
  fc.assert(
    fc.property(changed, (input) => {
      const draining = input.shards.filter((one) => one.draining);
      const plan = planned(input);
      if (draining.length === 0 || plan === undefined) return;
      const roomy = {
        ...input,
        shards: input.shards.map((one) => Object.assign({}, one, { memoryBytes: 1000 })),
      };
      if (roomy.shards.length < 2) return;
      const ranks = new Set(draining.map(({ rank }) => rank));
      for (const copies of [...planPlacement(roomy).target.values()].flat()) {
        assert.ok(copies.every(({ rank }) => !ranks.has(rank)));
      }
    }),
    { numRuns: 100 },
  );
});

test("a shard that has less memory than it holds gives up what does not fit, where the others have room", () => {
  fc.assert(
    fc.property(
      changed,
      fc.nat(5),
      fc.integer({ min: 0, max: 60 }),
      (input, which, memoryBytes) => {
        const [first, ...others] = input.shards.filter(({ draining }) => !draining);
        if (first === undefined || others.length === 0) return;
        const small = [first, ...others][which % (others.length + 1)].rank;
        const shards = input.shards.map((one) =>
          Object.assign({}, one, { memoryBytes: one.rank === small ? memoryBytes : 1000 }),
        );
        const plan = planPlacement({ ...input, shards });
        assertPlaced(input, plan.target);
        const before = bytesHeld(input, live(input)).get(small) ?? 0;
        for (const stage of plan.stages) {
          const held = bytesHeld(input, stage).get(small) ?? 0;
          assert.ok(held <= Math.max(before, memoryBytes), `${held} bytes on the way`);
        }
        const held = bytesHeld(input, plan.target).get(small) ?? 0;
        assert.ok(held <= memoryBytes, `${held} bytes in ${memoryBytes}`);
      },
    ),
    { numRuns: 100 },
  );
});
