import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { LOCAL_RANK, type LayerReplicas } from "../../../../core/placement/placement.ts";
import { expertPeers } from "../../../../router-service/cluster/shards/expert-peers.ts";
import { assertClose, testValues } from "../../../../bench/rig/expert-reference.ts";
import { hostStep, hostValues, testRouting } from "../../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard } from "../../../support/shards.ts";
import { placed } from "../../../support/tiny-experts.ts";

const copiesOn = (...ranks: number[]) =>
  ranks.map((rank) => ({ rank, share: 1 / ranks.length })) satisfies LayerReplicas[number];

describe("peers of a shard", () => {
  const layers = new Map<number, LayerReplicas>([
    [1, [copiesOn(0), copiesOn(0, 1), copiesOn(2), copiesOn(LOCAL_RANK)]],
    [4, [copiesOn(1), copiesOn(0), copiesOn(0), copiesOn(2)]],
  ]);
  const held = (there: readonly number[]) => ({
    placement: { epoch: 3, layers },
    addressOf: (rank: number) => (there.includes(rank) ? `10.0.0.${rank}:1` : undefined),
  });
  const wanted = new Map([
    [1, [0, 1, 2, 3]],
    [4, [1, 2]],
    [7, [0]],
  ]);
  const rankZero = {
    address: "10.0.0.0:1",
    layers: [
      { layer: 1, expertIds: [0] },
      { layer: 4, expertIds: [1, 2] },
    ],
  };

  it("are those that hold what is new to it, and can give it", () => {
    assert.deepEqual(expertPeers(wanted, 1, held([0, 1, LOCAL_RANK])), [rankZero]);
  });

  it("give what it is to hold already where it comes back without it", () => {
    const [first, second] = expertPeers(wanted, 1, held([0, 2]));
    assert.deepEqual(first.layers[0], { layer: 1, expertIds: [0, 1] });
    assert.deepEqual(second, { address: "10.0.0.2:1", layers: [{ layer: 1, expertIds: [2] }] });
  });

  it("are a few of many holders, by turns", () => {
    const everywhere = copiesOn(0, 1, 2, 3, 4, 5, 6, 7);
    const placement = { epoch: 3, layers: new Map([[0, Array(8).fill(everywhere)]]) };
    const addressOf = String;
    const all = new Map([[0, [0, 1, 2, 3, 4, 5, 6, 7]]]);
    const peers = expertPeers(all, 9, {
      placement,
      addressOf: (rank) => (rank === 9 ? undefined : addressOf(rank)),
    });
    assert.deepEqual(
      peers.map((peer) => peer.layers[0].expertIds.length),
      [4, 4, 4, 4, 4, 4, 4, 4],
    );
  });
});

describe("a placement that moves experts", () => {
  it("is loaded from the shards that held them, where the checkpoint is gone", async () => {
    const shards = [await startTestShard({ rank: 0 }), await startTestShard({ rank: 1 })];
    const cluster = await connectTestCluster(
      shards.map(({ address }) => address),
      { plansFirst: false },
    );
    const routing = testRouting(6, 4, (token, k) => (token * 2 + k * 3) % 12);
    const run = async (layer: number) => {
      const step = hostStep(testValues(6 * 64, 1), routing, new AbortController().signal);
      return hostValues(await cluster.runExperts(layer, step.hiddenStates, step.routing));
    };
    try {
      await cluster.adopt(placed(1, (expert) => [expert < 6 ? 0 : 1]));
      await cluster.ready();
      const expected = [await run(0), await run(1), await run(2)];
      await shards[1].checkpoint.close();
      await cluster.adopt(placed(2, () => [1]));
      for (const layer of [0, 1, 2]) assertClose(await run(layer), expected[layer], 1e-5);
    } finally {
      await cluster.close();
      await Promise.all(shards.map((shard) => shard.close()));
    }
  });
});
