import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { waitFor } from "../../../../bench/rig/wait-for.ts";
import { TINY_MODEL } from "../../../../bench/rig/cluster.ts";
import { type Checkpoint, openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../../../core/model/config.ts";
import { readModelConfig } from "../../../../core/model/load-config.ts";
import { type PlacedLayers, planPlacement } from "../../../../core/placement/planner.ts";
import { judge } from "../../../../router-service/cluster/planning/plan-decision.ts";
import type { PlanFacts } from "../../../../router-service/cluster/planning/planner-input.ts";
import {
  heldOf,
  planFrom,
  type SeenShard,
  type StageUnderway,
  upsetOf,
} from "../../../../router-service/cluster/planning/stage-underway.ts";
import { startTestShard } from "../../../support/shards.ts";
import { assertComputes, runRows, settled, startTestRouter } from "../../../support/test-router.ts";
import { EXPERT_BYTES, NUM_EXPERTS, NUM_LAYERS } from "../../../support/tiny-experts.ts";

const placed = (...ranks: readonly (readonly number[])[]): PlacedLayers =>
  new Map([[0, ranks.map((of) => of.map((rank) => ({ rank, share: 1 / of.length })))]]);
const shards = (ranks: readonly number[], draining: readonly number[] = []): SeenShard[] =>
  ranks.map((rank) => ({ rank, draining: draining.includes(rank) }));

/** From shards 0 and 1 to 1 and 2. */
const move: StageUnderway = {
  epoch: 2,
  inUse: placed([0], [1]),
  stage: placed([2], [1]),
  planned: shards([0, 1, 2]),
};

const CASES: readonly [what: string, there: SeenShard[], upset: string | undefined][] = [
  ["nothing has changed", shards([0, 1, 2]), undefined],
  ["a shard is lost that it counts on", shards([0, 1]), "bereft"],
  ["a shard is lost that it counts on no more", shards([1, 2]), undefined],
  ["a shard is to leave that it gives an expert to", shards([0, 1, 2], [2]), "changed"],
  ["a shard is to leave that rows go to", shards([0, 1, 2], [0]), "changed"],
  ["a shard has joined", shards([0, 1, 2, 3]), "changed"],
  ["a shard has joined that is to leave", shards([0, 1, 2, 3], [3]), undefined],
];

for (const [what, there, upset] of CASES) {
  it(`a stage that is loaded ${upset === undefined ? "goes on" : "gives way"} where ${what}`, () => {
    assert.equal(upsetOf(move, there), upset);
  });
}

it("a stage by which a shard is to leave goes on where another one joins", () => {
  const leaving = { ...move, planned: shards([0, 1, 2], [0]) };
  assert.equal(upsetOf(leaving, shards([0, 1, 2], [0])), undefined);
  assert.equal(upsetOf(leaving, shards([0, 1, 2, 3], [0])), undefined);
});

it("what is held is all that rows go to, and what the stage gave to those that have all of it", () => {
  const inUse = placed([0], [1], [0, 1]);
  const stage = placed([2], [2, 3], [1]);
  assert.deepEqual(
    heldOf({ inUse, stage }, new Set([1, 3])),
    new Map([
      [
        0,
        [
          inUse.get(0)?.[0],
          [
            { rank: 1, share: 1 },
            { rank: 3, share: 0 },
          ],
          inUse.get(0)?.[2],
        ],
      ],
    ]),
  );
});

it("a stage is taken back that takes more memory than a shard has come back with", async () => {
  const config = await readModelConfig(TINY_MODEL);
  const layers = moeLayers(config);
  const cells = NUM_LAYERS * NUM_EXPERTS;
  const allOn = (rank: number): PlacedLayers =>
    new Map(
      layers.map((layer) => [
        layer,
        Array.from({ length: NUM_EXPERTS }, () => [{ rank, share: 1 }]),
      ]),
    );
  const [inUse, stage] = [allOn(0), allOn(1)];
  const shard = (rank: number, experts: number) => ({
    rank,
    memoryBytes: experts * EXPERT_BYTES,
    draining: false,
    secondsPerPair: 1,
    rttSeconds: 0,
    bytesPerSecond: 1e9,
    loadBytesPerSecond: 1e9,
  });
  const facts: PlanFacts = {
    config,
    formatOf: () => "f32",
    wire: "f32",
    shards: [shard(0, cells), shard(1, cells / 2)],
    expected: { load: new Float64Array(cells).fill(1), deviation: new Float64Array(cells) },
    current: { epoch: 1, layers: inUse },
    moves: { bytes: 0, steps: 1 },
    minCopies: 1,
  };
  const underway = { epoch: 2, inUse, stage, planned: undefined };
  const plan = await planFrom(facts, underway, [], { plan: async (input) => planPlacement(input) });
  assert.deepEqual(plan.stages, [inUse]);
  const { decision } = judge({
    plan,
    current: { epoch: 1, layers: inUse },
    underway: stage,
    facts,
    bytesOf: () => EXPERT_BYTES,
    last: undefined,
    atMs: 0,
    leastMs: 0,
  });
  assert.equal(decision.publish, true);
  assert.match(decision.why, /^shard 1 is short of memory; nothing is loaded/);
});

describe("a move to a shard whose experts do not come from its disk", { timeout: 30_000 }, () => {
  let checkpoint: Checkpoint;
  before(async () => {
    checkpoint = await openCheckpoint(TINY_MODEL);
  });
  after(() => checkpoint.close());

  it("gives way to a drain: what shard 3 does not load, shard 2 does, in the memory that both have", async (t) => {
    const all = NUM_LAYERS * NUM_EXPERTS * EXPERT_BYTES;
    let held: PromiseWithResolvers<void> | undefined;
    let waiting = 0;
    const beforeRead = async () => {
      waiting += held === undefined ? 0 : 1;
      await held?.promise;
    };
    const four = await Promise.all(
      [0, 1, 2, 3].map((rank) =>
        startTestShard({
          rank,
          weights: "f32",
          memoryLimit: rank === 2 ? (3 * all) / 4 : all / 2,
          ...(rank === 3 && { beforeRead }),
        }),
      ),
    );
    const router = await startTestRouter(checkpoint, "alone", {
      shards: four.map(({ address }) => address),
    });
    t.after(async () => {
      held?.resolve();
      await router.close();
      await Promise.all(four.map((shard) => shard.close()));
    });
    await router.cluster.ready();
    await waitFor("the first placement", () => router.plane.follower.stored() !== undefined);
    const expected = await runRows(router);
    const heldBy3 = () =>
      [...(router.cluster.current()?.placement.layers ?? [])].map(([, replicas]) =>
        replicas.map((copies) => copies.some(({ rank }) => rank === 3)),
      );
    const before = heldBy3();

    held = Promise.withResolvers();
    router.cluster.drain(0, false);
    await waitFor("shard 3 to load", () => waiting > 0);
    await assertComputes(router, expected);
    router.cluster.drain(1, false);
    await settled([router], [2, 3]);
    const released = () =>
      [0, 1].every((rank) => router.cluster.members()[rank].status?.released === true);
    await waitFor("the release of both", released);
    assert.deepEqual(heldBy3(), before);
    await assertComputes(router, expected);
    assert.match(router.plane.follower.stored()?.why ?? "", /shards 0, 1 are to leave/);
  });
});
