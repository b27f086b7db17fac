import assert from "node:assert/strict";
import { test } from "node:test";

import { layerTimes, stepSeconds } from "../../../core/placement/cost.ts";
import { NO_PARTNER } from "../../../core/placement/input.ts";
import { movesBetween } from "../../../core/placement/moves.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import {
  PlacementError,
  PlannerInputError,
  planPlacement,
  type PlacedLayers,
} from "../../../core/placement/planner.ts";
import { drawNormal, seededRandom } from "../../../core/random.ts";
import { lossRecovery, missingRecovery } from "../../../core/placement/recovery.ts";
import { plannerInput } from "./inputs.ts";

const random = seededRandom(5);
/** Three layers of twelve experts, the hottest with some ten times the load of the coldest. */
const LOADS = Array.from({ length: 3 }, () =>
  Array.from({ length: 12 }, () => Math.round(10 + 90 * random() ** 2)),
);
const STEPS = 1e9;

function ranksUsed(placed: PlacedLayers, layer: number): number[] {
  const ranks = placed.get(layer)!.flatMap((copies) => copies.map(({ rank }) => rank));
  return [...new Set(ranks)].sort((a, b) => a - b);
}

function loads({ moves }: { readonly moves: readonly { readonly kind: string }[] }): number {
  return moves.filter(({ kind }) => kind === "load").length;
}

test("bytes that are needed and offered are named where the experts do not fit", () => {
  assert.throws(
    () => planPlacement(plannerInput({ loads: [[1, 1, 1]], room: [1, 1] })),
    (error) =>
      error instanceof PlacementError &&
      /1 layer of 3 experts take 3 bytes; 2 shards offer 1 \+ 1 bytes/u.test(error.message),
  );
});

test("values that can not be are refused with their layer and expert", () => {
  assert.throws(
    () => planPlacement(plannerInput({ loads: [[1, Number.NaN]], room: [2] })),
    (error) =>
      error instanceof PlannerInputError && /load of layer 0 expert 1 is NaN/u.test(error.message),
  );
});

test("memory that is no whole number of experts per layer is used up by layers in turn", () => {
  const { target, why } = planPlacement(plannerInput({ loads: LOADS, room: [13, 13, 13] }));
  assert.deepEqual(
    why.shards.map(({ experts }) => experts),
    [13, 13, 13],
  );
  const copies = [...target.values()].map((replicas) => replicas.flat().length);
  assert.deepEqual(copies, [13, 13, 13]);
});

test("a shard of a third of the speed gets a third of the pairs", () => {
  const { why } = planPlacement(
    plannerInput({
      loads: LOADS,
      room: [30, 30],
      shards: [{}, { secondsPerPair: 3 }],
      steps: [],
    }),
  );
  const [fast, slow] = why.shards.map(({ pairs }) => pairs);
  assert.ok(Math.abs(slow / fast - 1 / 3) < 0.01, `${slow} of ${fast}`);
});

test("a layer stays on one shard where a message costs more than sharing saves, and leaves it where it does not", () => {
  const cluster = { loads: LOADS, room: [12, 12, 12] };
  const router = { secondsPerRow: 0, rowBytesOut: 1, rowBytesIn: 1 };
  const dear = planPlacement(
    plannerInput({ ...cluster, router: { ...router, secondsPerHop: 5000 } }),
  );
  for (const layer of [0, 1, 2]) assert.equal(ranksUsed(dear.target, layer).length, 1);
  const cheap = planPlacement(
    plannerInput({ ...cluster, router: { ...router, secondsPerHop: 0.01 } }),
  );
  for (const layer of [0, 1, 2]) assert.deepEqual(ranksUsed(cheap.target, layer), [0, 1, 2]);
});

test("a shard that is far away is left out of every layer", () => {
  const { target } = planPlacement(
    plannerInput({ loads: LOADS, room: [40, 40, 40], shards: [{}, {}, { rttSeconds: 1e5 }] }),
  );
  for (const layer of [0, 1, 2]) assert.deepEqual(ranksUsed(target, layer), [0, 1]);
});

test("the routers' own devices take whole layers where they have room, which saves all their hops", () => {
  const { target } = planPlacement(
    plannerInput({
      loads: LOADS,
      room: [12, 24, 24],
      shards: [{ rank: LOCAL_RANK }, { rttSeconds: 2000 }, { rttSeconds: 2000 }],
    }),
  );
  const local = [0, 1, 2].filter((layer) => ranksUsed(target, layer)[0] === LOCAL_RANK);
  assert.ok(local.length > 0);
  assert.ok([0, 1, 2].some((layer) => ranksUsed(target, layer).length === 1));
});

test("under the same load next to nothing is loaded again, and nothing where loading costs more than it brings", () => {
  const input = plannerInput({
    loads: LOADS,
    room: [14, 14, 14],
    moves: { bytes: 1e9, steps: STEPS },
  });
  const { target } = planPlacement(input);
  const current = { epoch: 1, layers: target };
  assert.ok(loads(planPlacement({ ...input, current })) <= 2);
  const reversed = { ...input, load: input.load.toReversed(), current };
  assert.ok(loads(planPlacement(reversed)) > 2);
  const slow = input.shards.map((one) => Object.assign({}, one, { loadSecondsPerByte: 1e6 }));
  assert.equal(
    loads(planPlacement({ ...reversed, shards: slow, moves: { bytes: 1e9, steps: 0 } })),
    0,
  );
});

const SIZES = [
  { numLayers: 48, numExperts: 128, numShards: 16, slots: 9, seeds: 1 },
  { numLayers: 26, numExperts: 64, numShards: 8, slots: 10, seeds: 2 },
  { numLayers: 8, numExperts: 32, numShards: 6, slots: 7, seeds: 6 },
];
for (const { numLayers, numExperts, numShards, slots, seeds } of SIZES) {
  test(`nothing is loaded again under the same load, and under another only what saves a part of the step: ${numLayers} × ${numExperts} × ${numShards}`, () => {
    let numMoved = 0;
    for (let seed = 1; seed <= seeds; seed++) {
      const normal = seededRandom(seed);
      const skewed = Array.from({ length: numLayers }, () =>
        Array.from({ length: numExperts }, () => 100 * Math.exp(drawNormal(normal))),
      );
      const input = plannerInput({
        loads: skewed,
        room: Array.from({ length: numShards }, () => numLayers * slots),
        moves: { bytes: Infinity, steps: STEPS },
      });
      const current = { epoch: 1, layers: planPlacement(input).target };
      const again = planPlacement({ ...input, current });
      assert.deepEqual([loads(again), again.stages.length], [0, 0], `seed ${seed}`);
      for (const drift of [0.05, 0.4]) {
        const load = input.load.map((pairs) => pairs * Math.exp(drift * drawNormal(normal)));
        const next = planPlacement({ ...input, load, current });
        const { secondsBefore, secondsAfter } = next.why;
        if (loads(next) > 0) assert.ok(secondsAfter <= 0.98 * secondsBefore!, `seed ${seed}`);
        if (drift < 0.4) continue;
        if (loads(next) > 0) numMoved++;
        // What stands is as good as what would be planned from nothing.
        else assert.ok(planPlacement({ ...input, load }).why.secondsAfter > 0.98 * secondsBefore!);
      }
    }
    assert.ok(numMoved > 0.8 * seeds, `${numMoved}`);
  });
}

test("a plan loads no more than its move budget beside what it must", () => {
  const input = plannerInput({ loads: LOADS, room: [14, 14, 14] });
  const current = { epoch: 1, layers: planPlacement(input).target };
  const reversed = { ...input, load: input.load.toReversed(), current };
  for (const bytes of [0, 1, 3]) {
    const { moves } = planPlacement({ ...reversed, moves: { bytes, steps: STEPS } });
    assert.ok(loads({ moves }) <= bytes, `${loads({ moves })} loads of ${bytes}`);
  }
  const shards = input.shards.slice(1).map((one) => Object.assign({}, one, { memoryBytes: 20 }));
  const lost = planPlacement({ ...reversed, shards, moves: { bytes: 0, steps: STEPS } });
  const missing = [...current.layers.values()]
    .flat()
    .filter((copies) => copies.every(({ rank }) => rank === 0)).length;
  assert.equal(loads(lost), missing);
});

test("a change of one layer's load moves that layer's experts only", () => {
  const input = plannerInput({ loads: LOADS, room: [14, 14, 14] });
  const current = { epoch: 1, layers: planPlacement(input).target };
  const load = input.load.slice();
  load.subarray(12, 24).reverse();
  const { target } = planPlacement({ ...input, load, current });
  const moved = movesBetween(current.layers, target).map(({ layer }) => layer);
  assert.ok(moved.includes(1));
  const again = movesBetween(current.layers, planPlacement({ ...input, current }).target);
  assert.ok(moved.filter((layer) => layer !== 1).length <= again.length);
});

test("experts that the same tokens choose come to sit on one shard", () => {
  // Tokens choose experts 2i and 2i + 1 together; loads alone would not tell.
  const numExperts = 8;
  const input = plannerInput({
    loads: [Array.from({ length: numExperts }, () => 10)],
    room: [2, 2, 2, 2],
    topK: 2,
    steps: [],
    router: { secondsPerHop: 0, secondsPerRow: 0.2, rowBytesOut: 1, rowBytesIn: 1 },
    together: {
      topN: 2,
      partners: Uint16Array.from({ length: 2 * numExperts }, (_, i) =>
        i % 2 === 0 ? (i / 2) ^ 1 : NO_PARTNER,
      ),
      tokens: Float64Array.from({ length: 2 * numExperts }, (_, i) => (i % 2 === 0 ? 10 : 0)),
    },
  });
  const [replicas] = planPlacement(input).target.values();
  for (let expert = 0; expert < numExperts; expert += 2) {
    assert.deepEqual(replicas[expert], replicas[expert + 1]);
  }
});

test("the loss of a shard takes its last copies only, on the survivors that load them soonest, spare copies giving way", () => {
  const input = plannerInput({
    loads: [[1, 1, 1, 1]],
    room: [2, 2, 2],
    shards: [{}, { loadSecondsPerByte: 2 }, { loadSecondsPerByte: 3 }],
  });
  const copy = (...ranks: readonly number[]) =>
    ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
  const placed = new Map([[0, [copy(0), copy(0, 1), copy(1, 2), copy(2)]]]);
  const [first, second, third] = lossRecovery(input, placed);
  // Rank 1 has a second copy of expert 2, which gives way to expert 0.
  assert.deepEqual(first, {
    rank: 0,
    homes: [{ layer: 0, expert: 0, rank: 1 }],
    bytes: 1,
    seconds: 2,
    homeless: [],
  });
  assert.deepEqual([second.bytes, second.seconds], [0, 0]);
  assert.equal(third.homes[0].expert, 3);
});

test("a copy on a shard that is gone is none: what only one living shard has besides is lost with it", () => {
  const input = plannerInput({ loads: [[1, 1, 1]], room: [3, 2] });
  const GONE = 7;
  const placed = new Map([
    [
      0,
      [[0, GONE], [1, GONE], [GONE]].map((ranks) =>
        ranks.map((rank) => ({ rank, share: 1 / ranks.length })),
      ),
    ],
  ]);
  const [first, second, ...others] = lossRecovery(input, placed);
  assert.deepEqual(first.homes, [{ layer: 0, expert: 0, rank: 1 }]);
  assert.deepEqual(second.homes, [{ layer: 0, expert: 1, rank: 0 }]);
  assert.deepEqual(others, []);
});

test("the routers' own devices are no shard that could be lost: a copy there is another copy", () => {
  const input = plannerInput({ loads: [[1, 1]], room: [2, 2], shards: [{}, { rank: LOCAL_RANK }] });
  const placed = new Map([
    [0, [[0, LOCAL_RANK], [LOCAL_RANK]].map((ranks) => ranks.map((rank) => ({ rank, share: 1 })))],
  ]);
  const losses = lossRecovery(input, placed);
  assert.deepEqual(losses, [{ rank: 0, homes: [], bytes: 0, seconds: 0, homeless: [] }]);
});

test("experts without any copy are re-homed where there is room, and homeless where there is none", () => {
  const placed = new Map([[0, [0, 7, 7].map((rank) => [{ rank, share: 1 }])]]);
  const missing = (room: readonly number[]) =>
    missingRecovery(plannerInput({ loads: [[1, 1, 1]], room }), placed);
  const { homes, homeless, seconds } = missing([2, 1]);
  assert.deepEqual(
    homes.map(({ expert }) => expert),
    [1, 2],
  );
  assert.deepEqual([homeless.length, seconds], [0, 1]);
  assert.equal(missing([1, 1]).homeless.length, 1);
  assert.equal(missing([]).homeless.length, 3);
});

test("experts that no survivor has room for are homeless", () => {
  const input = plannerInput({ loads: [[1, 1]], room: [1, 1] });
  const placed = planPlacement(input).target;
  const [loss] = lossRecovery(input, placed);
  assert.equal(loss.homeless.length, 1);
  assert.deepEqual([loss.homes.length, loss.bytes, loss.seconds], [0, 0, 0]);
});

test("a placement that is given takes what a plan of it says", () => {
  const input = plannerInput({ loads: LOADS, room: [14, 14, 14] });
  const { target, why } = planPlacement(input);
  assert.ok(Math.abs(stepSeconds(input, target) / why.secondsAfter - 1) < 1e-9);
});

test("a placement takes what its shares say, however many copies an expert has", () => {
  const shards = Array.from({ length: 100 }, (_, shard) => shard);
  const layer = [shards.slice(2), shards.slice(0, 2)].map((ranks) =>
    ranks.map((rank) => ({ rank, share: 1 / ranks.length })),
  );
  const loads = [
    [980, 40],
    [40, 980],
  ];
  const room = shards.map(() => 1);
  const input = { ...plannerInput({ loads, room }), policy: "eplb" as const, steps: [] };
  const placed = new Map([
    [0, layer],
    [1, layer.toReversed()],
  ]);
  for (const { seconds } of layerTimes(input, placed)) {
    assert.ok(Math.abs(seconds - 20) < 1e-9, `${seconds} s`);
  }
});

test("what a plan saves by the shards' speeds is more unsure than what it saves by the load", () => {
  // Two experts on shard 0 and one on shard 1; with room for all everywhere, the split evens the shards out.
  const layers: PlacedLayers = new Map([[0, [0, 0, 1].map((rank) => [{ rank, share: 1 }])]]);
  const doubt = (load: readonly number[], slowdown: number, spread: number) => {
    const shards = [{ spread }, { spread, secondsPerPair: slowdown }];
    const current = { epoch: 1, layers };
    const { why } = planPlacement(plannerInput({ loads: [load], room: [3, 3], shards, current }));
    return why.savingDeviation / (why.secondsBefore! - why.secondsAfter);
  };
  assert.equal(doubt([10, 10, 20], 1.5, 0), 0);
  const bySpeed = doubt([10, 10, 20], 1.5, 0.2);
  assert.ok(bySpeed > 0.5, `${bySpeed}`);
  const byLoad = doubt([30, 30, 2], 1, 0.2);
  assert.ok(byLoad > 0 && byLoad < 0.7 * bySpeed, `${byLoad}`);
});
