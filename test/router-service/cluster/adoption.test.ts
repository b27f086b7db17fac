import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import type { Cluster } from "../../../router-service/cluster/cluster.ts";
import { PlacementError } from "../../../router-service/cluster/errors.ts";
import type { ResendReason } from "../../../router-service/cluster/dispatch/resend.ts";
import { assertClose, testValues } from "../../../bench/rig/expert-reference.ts";
import { hostStep, hostValues, testRouting } from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard, type TestShard } from "../../support/shards.ts";
import { EXPERT_BYTES, placed } from "../../support/tiny-experts.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const routing = testRouting(6, 4, (token, k) => (token * 2 + k * 3) % 12);
const rows = testValues(6 * 64, 1);

const lowFirst = (expert: number) => [expert < 6 ? 0 : 1];
const thirdly = (expert: number) => [expert < 4 || expert > 8 ? 1 : 0];
const highFirst = (expert: number) => [expert < 6 ? 1 : 0];

describe("adopting placements", () => {
  let shards: TestShard[];
  let cluster: Cluster;
  const resends: ResendReason[] = [];
  const run = async (layer: number) => {
    const step = hostStep(rows, routing, new AbortController().signal);
    return hostValues(await cluster.runExperts(layer, step.hiddenStates, step.routing));
  };
  before(async () => {
    // 36 experts of 3 · 64 · 40 values in f32: each shard holds three quarters of them.
    const memoryLimit = 27 * EXPERT_BYTES;
    shards = [
      await startTestShard({ rank: 0, memoryLimit }),
      await startTestShard({ rank: 1, memoryLimit: memoryLimit + 1 }),
    ];
    cluster = await connectTestCluster(
      shards.map(({ address }) => address),
      { plansFirst: false, onResend: (reason) => resends.push(reason) },
    );
    await cluster.adopt(placed(3, lowFirst));
    await cluster.ready();
  });
  after(async () => {
    await cluster.close();
    await Promise.all(shards.map((shard) => shard.close()));
  });

  it("moves every expert beside rows under way, and no row is sent twice", async () => {
    const expected = [await run(0), await run(1), await run(2)];
    const moved = new AbortController();
    let runs = 0;
    const serving = (async () => {
      for (let layer = 0; !moved.signal.aborted; layer = (layer + 1) % 3, runs++) {
        assertClose(await run(layer), expected[layer], 1e-5);
      }
    })();
    for (const [index, ranksOf] of [
      (expert: number) => (expert % 3 === 0 ? [0, 1] : lowFirst(expert)),
      lowFirst,
      (expert: number) => [expert % 2],
      highFirst,
    ].entries()) {
      const before = runs;
      await cluster.adopt(placed(4 + index, ranksOf));
      await waitFor("runs by the new placement", () => runs > before + 3);
    }
    moved.abort();
    await serving;
    assert.deepEqual(resends, []);
    assert.equal(cluster.current()?.placement.epoch, 7);
    await waitFor("the release", () =>
      cluster.members().every(({ epochs, status }) => {
        const live = status?.epochs ?? [];
        return epochs.join() === "7" && live.join() === "7";
      }),
    );
    assert.deepEqual(
      cluster.members().map(({ status }) => status?.residentBytes),
      [18, 18].map((experts) => experts * EXPERT_BYTES),
    );
  });

  it("stays with its placement where a shard has no room, naming it and the bytes, and adopts the next", async () => {
    const expected = await run(1);
    await assert.rejects(
      // Rank 1 takes its part of it, beside which it has no room for the next.
      cluster.adopt(placed(8, (expert) => (expert < 9 ? [0, 1] : [0]))),
      (error) =>
        error instanceof PlacementError &&
        error.message.includes(shards[0].address) &&
        /placement 8.*bytes of device memory, at most 829440/.test(error.message),
    );
    assert.equal(cluster.current()?.placement.epoch, 7);
    assertClose(await run(1), expected, 1e-5);
    await cluster.adopt(placed(9, thirdly));
    assertClose(await run(1), expected, 1e-5);
    await waitFor("the release", () =>
      cluster.members().every(({ status }) => status?.epochs.join() === "9"),
    );
  });

  it("refuses an epoch that is over, another dtype, and what would lose a last copy", async () => {
    await assert.rejects(cluster.adopt(placed(2, lowFirst)), /epoch 2, the router is at 9/);
    const half = { ...placed(10, lowFirst), weights: "f16" } as const;
    await assert.rejects(cluster.adopt(half), /weights f16, the router has f32/);
    await assert.rejects(
      cluster.adopt(placed(10, (expert) => (expert === 0 ? [5] : thirdly(expert)))),
      /would leave expert 0 of layer 0 without a living copy/,
    );
    const aborted = cluster.adopt(placed(11, lowFirst), AbortSignal.abort(new Error("no leader")));
    await assert.rejects(aborted, /no leader/);
    assert.equal(cluster.current()?.placement.epoch, 9);
  });

  it("gives a shard that was away the placement when it comes back", async () => {
    const [, { address }] = shards;
    await shards[1].close();
    await waitFor("the loss", () => cluster.missingReason() !== undefined);
    await cluster.adopt(placed(12, (expert) => [expert < 9 ? 0 : 1]));
    shards[1] = await startTestShard({ rank: 1, port: Number(address.split(":")[1]) });
    await cluster.ready();
    assert.deepEqual(
      cluster.members().map(({ state, epochs }) => `${state} ${epochs.join()}`),
      ["ready 12", "ready 12"],
    );
  });

  it("takes members that are named later, and lets go of others", async () => {
    const third = await startTestShard({ rank: 2 });
    const events: string[] = [];
    const stop = cluster.onChange(({ kind, member }) => events.push(`${kind} ${member?.rank}`));
    cluster.setMembers([...shards.map(({ address }) => address), third.address]);
    await waitFor("the third", () => cluster.members()[2]?.state === "ready");
    await cluster.adopt(placed(13, (expert) => [expert < 6 ? 0 : 2]));
    cluster.setMembers([shards[0].address, third.address]);
    assert.deepEqual(
      cluster.members().map(({ rank }) => rank),
      [0, 2],
    );
    await run(2);
    stop();
    assert.ok(events.includes("joined 2") && events.includes("left 1"), events.join());
    await third.close();
  });
});
