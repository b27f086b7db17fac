import assert from "node:assert/strict";
import { test } from "node:test";

import { moeLayers } from "../../../../core/model/config.ts";
import { readModelConfig } from "../../../../core/model/load-config.ts";
import { LOCAL_RANK } from "../../../../core/placement/placement.ts";
import { planPlacement } from "../../../../core/placement/planner.ts";
import { expertBytes } from "../../../../core/weights.ts";
import {
  type PlanFacts,
  plannerInput,
  type ShardFacts,
} from "../../../../router-service/cluster/planning/planner-input.ts";
import { rankBytes } from "../../../../router-service/cluster/planning/held-bytes.ts";
import { suppose, WhatIfError } from "../../../../router-service/cluster/planning/what-if.ts";
import { TINY_MODEL } from "../../../../bench/rig/cluster.ts";

const config = await readModelConfig(TINY_MODEL);
const layers = moeLayers(config);
const cells = layers.length * config.numExperts;

const shardOf = (rank: number, known: Partial<ShardFacts> = {}): ShardFacts => ({
  rank,
  memoryBytes: 1e6,
  draining: false,
  secondsPerPair: undefined,
  rttSeconds: undefined,
  bytesPerSecond: undefined,
  loadBytesPerSecond: undefined,
  ...known,
});

const factsOf = (shards: readonly ShardFacts[], others: Partial<PlanFacts> = {}): PlanFacts => ({
  config,
  formatOf: (layer) => (layer === layers[0] ? "int8" : "f16"),
  wire: "f16",
  shards,
  expected: { load: new Float64Array(cells).fill(2), deviation: new Float64Array(cells) },
  moves: { bytes: 5, steps: 7 },
  minCopies: 1,
  ...others,
});

test("shards that were not measured count as the middle one of those that were, routers' own devices aside", () => {
  const { shards } = plannerInput(
    factsOf([
      shardOf(0, { secondsPerPair: 1e-3, rttSeconds: 1e-4, bytesPerSecond: 1e8 }),
      shardOf(1),
      shardOf(2, { secondsPerPair: 3e-3, rttSeconds: 2e-4, bytesPerSecond: 1e9 }),
      shardOf(3, { secondsPerPair: 2e-3, rttSeconds: 3e-4, bytesPerSecond: 1e10 }),
      shardOf(LOCAL_RANK, { secondsPerPair: 9, rttSeconds: 0, bytesPerSecond: Infinity }),
    ]),
  );
  const [, unknown, , , local] = shards;
  assert.equal(unknown.secondsPerPair, 2e-3);
  assert.equal(unknown.rttSeconds, 2e-4);
  assert.equal(unknown.bytesPerSecond, 1e9);
  assert.deepEqual([local.rttSeconds, local.bytesPerSecond], [0, Infinity]);
});

test("a shard that was not measured counts as the slower of two that were, in all that it could be measured by", () => {
  const fast = {
    secondsPerPair: 1e-3,
    rttSeconds: 1e-4,
    bytesPerSecond: 1e9,
    loadBytesPerSecond: 4e8,
  };
  const slow = {
    secondsPerPair: 2e-3,
    rttSeconds: 3e-4,
    bytesPerSecond: 1e8,
    loadBytesPerSecond: 1e8,
  };
  for (const measured of [[fast, slow], [slow, fast], [slow]]) {
    const shards = [shardOf(9), ...measured.map((one, rank) => shardOf(rank, one))];
    const [unknown] = plannerInput(factsOf(shards)).shards;
    assert.equal(unknown.secondsPerPair, slow.secondsPerPair);
    assert.equal(unknown.rttSeconds, slow.rttSeconds);
    assert.equal(unknown.bytesPerSecond, slow.bytesPerSecond);
    assert.equal(unknown.loadSecondsPerByte, 1 / slow.loadBytesPerSecond);
  }
});

test("what a shard was to hold that came back with too little memory is planned for as if it were gone", () => {
  const load = Float64Array.from({ length: cells }, (_, cell) => 1 + ((7 * cell) % 11));
  const others = { formatOf: () => "f32" as const, expected: { load, deviation: load } };
  const bytes = expertBytes(config, "f32");
  const shardsOf = (room: readonly number[], known?: Partial<ShardFacts>) =>
    room.map((experts, rank) =>
      shardOf(rank, { memoryBytes: experts * bytes, ...(rank === 1 && known) }),
    );
  const part = Math.ceil(cells / 3);
  const replicas = Array.from({ length: config.numExperts }, (_, expert) => [
    { rank: expert % 3, share: 1 },
  ]);
  const current = { epoch: 4, layers: new Map(layers.map((layer) => [layer, replicas])) };
  // Room for all to the byte: what gives way does so in turns.
  const room = [part + 3, part - 5, part + 2];
  const moves = { bytes: Infinity, steps: 1e9 };
  const facts = { ...others, current, moves };
  const { stages } = planPlacement(plannerInput(factsOf(shardsOf(room, { isEmpty: true }), facts)));
  const heldBy1 = stages.map((stage) => rankBytes(() => 1, stage, 1));
  assert.ok(heldBy1.length > 0);
  assert.ok(Math.max(...heldBy1) <= room[1], `${heldBy1.join(", ")} experts in ${room[1]}`);
  const staying = plannerInput(factsOf(shardsOf(room), facts));
  assert.equal(staying.current?.layers, current.layers);
});

test("each expert takes the bytes of its own format, and rows those of the wire", () => {
  const input = plannerInput(factsOf([shardOf(0)]));
  assert.equal(input.bytes[0], expertBytes(config, "int8"));
  assert.equal(input.bytes[config.numExperts], expertBytes(config, "f16"));
  assert.equal(input.router.rowBytesOut, config.hiddenSize * 2 + config.numExpertsPerToken * 6);
  assert.equal(input.router.rowBytesIn, config.hiddenSize * 4);
});

test("steps that were seen are judged by, none where there are none or another load is supposed", () => {
  const steps = [new Float64Array(cells).fill(1)];
  const seen = factsOf([shardOf(0)], { steps });
  assert.equal(plannerInput(seen).steps, steps);
  assert.ok(!("steps" in plannerInput(factsOf([shardOf(0)], { steps: [] }))));
  assert.equal(plannerInput(suppose(seen, layers, { minCopies: 2 })).steps, steps);
  assert.ok(!("steps" in plannerInput(suppose(seen, layers, { tokensPerStep: 10 }))));
});

test("what is supposed changes shards, load and bounds, and leaves the rest as it is", () => {
  const facts = factsOf([shardOf(0), shardOf(1), shardOf(2)], {
    current: { epoch: 3, layers: new Map() },
  });
  const supposed = suppose(facts, layers, {
    shards: [
      { rank: 1, absent: true },
      { rank: 2, memoryBytes: 9, draining: true },
      { rank: 5, memoryBytes: 4, secondsPerPair: 0.5 },
    ],
    tokensPerStep: 10,
    load: new Map([[layers[1], [1, ...Array.from({ length: config.numExperts - 1 }, () => 0)]]]),
    fromNothing: true,
    minCopies: 2,
    moveBytes: 11,
    policy: "eplb",
  });
  assert.equal(plannerInput(supposed).policy, "eplb");
  assert.deepEqual(
    supposed.shards.map(({ rank, memoryBytes, draining }) => [rank, memoryBytes, draining]),
    [
      [0, 1e6, false],
      [2, 9, true],
      [5, 4, false],
    ],
  );
  const pairs = 10 * config.numExpertsPerToken;
  assert.equal(supposed.expected.load[config.numExperts], pairs);
  assert.equal(supposed.expected.load[config.numExperts + 1], 0);
  assert.ok(Math.abs(supposed.expected.load[0] - pairs / config.numExperts) < 1e-9);
  assert.equal(supposed.current, undefined);
  assert.deepEqual([supposed.minCopies, supposed.moves], [2, { bytes: 11, steps: 7 }]);
  assert.equal(facts.expected.load[0], 2, "the facts stay as they are");
});

test("what is supposed of one shard says nothing of others that were not measured", () => {
  const facts = factsOf([shardOf(0), shardOf(1), shardOf(2, { rttSeconds: 1e-4 })]);
  const costsOf = (of: PlanFacts, rank: number) => {
    const shard = plannerInput(of).shards.find((one) => one.rank === rank);
    return [shard?.rttSeconds, shard?.secondsPerPair, shard?.bytesPerSecond];
  };
  const slow = { rttSeconds: 0.5, secondsPerPair: 3, bytesPerSecond: 2 };
  const shards = [
    { rank: 0, ...slow },
    { rank: 7, memoryBytes: 1 },
  ];
  const supposed = suppose(facts, layers, { shards });
  assert.deepEqual(costsOf(supposed, 0), [0.5, 3, 2]);
  for (const rank of [1, 7]) assert.deepEqual(costsOf(supposed, rank), costsOf(facts, 1));
  assert.deepEqual(costsOf(supposed, 2), costsOf(facts, 2));
});

test("routers' own devices are supposed to be there, to have other memory, or to be gone, as shards are", () => {
  const held = shardOf(LOCAL_RANK, { rttSeconds: 1e-5, bytesPerSecond: Infinity });
  const localOf = (shards: readonly ShardFacts[], what: object) =>
    plannerInput(
      suppose(factsOf(shards), layers, { shards: [{ rank: LOCAL_RANK, ...what }] }),
    ).shards.find(({ rank }) => rank === LOCAL_RANK);
  const far = shardOf(0, { secondsPerPair: 2e-3, rttSeconds: 1, bytesPerSecond: 1 });
  // The way to a shard says nothing of one that there is none to.
  const added = localOf([far], { memoryBytes: 7 });
  assert.deepEqual(
    [added?.memoryBytes, added?.secondsPerPair, added?.rttSeconds, added?.bytesPerSecond],
    [7, 2e-3, 0, Infinity],
  );
  const smaller = localOf([far, held], { memoryBytes: 7 });
  assert.deepEqual([smaller?.memoryBytes, smaller?.rttSeconds], [7, 1e-5]);
  assert.equal(localOf([far, held], { absent: true }), undefined);
});

for (const [what, shard, said] of [
  ["be gone that have no memory", { absent: true }, /\.rank: there is no rank local, there are 0$/],
  ["have memory that is not named", {}, /\.memory_bytes: is missing, .* no rank local /],
  ["have a link", { bytesPerSecond: 1 }, /\.bytes_per_second: rank local has no link$/],
] as const) {
  test(`routers' own devices can not be supposed to ${what}`, () => {
    const shards = [{ rank: LOCAL_RANK, ...shard }];
    assert.throws(() => suppose(factsOf([shardOf(0)]), layers, { shards }), said);
  });
}

for (const [what, whatIf, param] of [
  ["a rank twice", { shards: [0, 0].map((rank) => ({ rank })) }, "shards[1].rank"],
  ["a new shard without memory", { shards: [{ rank: 9 }] }, "shards[0].memory_bytes"],
  ["that a shard is gone that is none", { shards: [{ rank: 9, absent: true }] }, "shards[0].rank"],
  [
    "a shard gone and other",
    { shards: [{ rank: 0, absent: true, memoryBytes: 1 }] },
    "shards[0].absent",
  ],
  ["a layer that is none", { load: new Map([[99, [1]]]) }, "load.99"],
  ["too few experts", { load: new Map([[layers[0], [1]]]) }, `load.${layers[0]}`],
] as const) {
  test(`supposing ${what} is refused by the field's name`, () => {
    assert.throws(
      () => suppose(factsOf([shardOf(0)]), layers, whatIf),
      (error) => error instanceof WhatIfError && error.param === param,
    );
  });
}
