import assert from "node:assert/strict";
import { after, before, describe, it, type TestContext } from "node:test";

import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { freePort } from "../../deploy/redis-process.ts";
import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import type { Logger } from "../../core/platform/log.ts";
import { silentLogger, startTestShard } from "../support/shards.ts";
import {
  assertComputes,
  epochOf,
  lossView,
  runRows,
  settled,
  startTestRouter,
} from "../support/test-router.ts";
import { EXPERT_BYTES } from "../support/tiny-experts.ts";

describe("a router without Redis", () => {
  let checkpoint: Checkpoint;
  before(async () => {
    checkpoint = await openCheckpoint(TINY_MODEL);
  });
  after(() => checkpoint.close());

  const start = async (
    t: TestContext,
    ranks: readonly number[],
    minCopies = 1,
    memoryLimit?: number,
    logger?: Logger,
  ) => {
    const shards = await Promise.all(
      ranks.map((rank) => startTestShard({ rank, weights: "f32", memoryLimit, logger })),
    );
    const router = await startTestRouter(checkpoint, "alone", {
      shards: shards.map(({ address }) => address),
      minCopies,
    });
    t.after(async () => {
      await router.close();
      await Promise.all(shards.map((shard) => shard.close()));
    });
    await router.cluster.ready();
    return { shards, router };
  };

  it("plans for itself: what a lost shard held gets another home", async (t) => {
    const { shards, router } = await start(t, [0, 1, 2]);
    const expected = await runRows(router);
    await shards[1].close();
    await settled([router], [0, 2]);
    await router.cluster.ready();
    await assertComputes(router, expected);
    assert.match(router.plane.follower.stored()?.why ?? "", /shard 1 is gone/);
  });

  it("tells a shard that leaves last that nothing has room, and its requests wait for it to be back", async (t) => {
    const warnings: string[] = [];
    const logger: Logger = Object.assign(Object.create(silentLogger) as Logger, {
      warn: (facts: object, message: string) =>
        warnings.push(`${message} ${JSON.stringify(facts)}`),
    });
    const { shards, router } = await start(t, [0], 1, 36 * EXPERT_BYTES, logger);
    const { cluster } = router;
    const expected = await runRows(router);
    assert.ok(cluster.drain(0, false));
    await waitFor("the word", () => warnings.length > 0);
    assert.match(
      warnings[0],
      /no shard .* has room .*0 shards offer 0 bytes, 1 more .*"experts":36/,
    );
    const [last] = shards;
    await last.close();
    await waitFor("the loss", () => cluster.missingReason() !== undefined);
    const running = runRows(router);
    assert.equal(cluster.hopelessReason(), undefined, "what was said of the drain fails nothing");
    const port = Number(last.address.split(":").at(-1));
    shards[0] = await startTestShard({ rank: 0, port, weights: "f32" });
    assert.deepEqual(await running, expected);
  });

  it("gives others what a shard has no room for that comes back with less memory", async (t) => {
    const { shards, router } = await start(t, [0, 1], 1, 24 * EXPERT_BYTES);
    const expected = await runRows(router);
    const [, lost] = shards;
    await lost.close();
    const port = Number(lost.address.split(":").at(-1));
    const options = { rank: 1, port, weights: "f32", memoryLimit: 14 * EXPERT_BYTES } as const;
    shards[1] = await startTestShard(options);
    await waitFor("a new placement", () => epochOf(router) > 1);
    await router.cluster.ready();
    await assertComputes(router, expected);
    await waitFor("why", () => (router.plane.follower.stored()?.placement.epoch ?? 0) > 1);
    assert.match(
      router.plane.follower.stored()?.why ?? "",
      /shard 1 is short of memory; 18 experts are loaded/,
    );
  });

  it("counts experts as lost of a shard that comes back with less memory than there is need of", async (t) => {
    const { shards, router } = await start(t, [0, 1], 1, 18 * EXPERT_BYTES);
    const [, lost] = shards;
    await lost.close();
    const port = Number(lost.address.split(":").at(-1));
    const options = { rank: 1, port, weights: "f32", memoryLimit: 14 * EXPERT_BYTES } as const;
    shards[1] = await startTestShard(options);
    const isBack = () => router.cluster.members()[1].state === "loading";
    await waitFor("the shard", isBack);
    const { lost: experts, predicted_step_seconds: seconds } = await lossView(router);
    assert.deepEqual([experts?.experts, experts?.experts_without_room, seconds], [18, 4, null]);
  });

  it("has as many copies as are asked for from the first placement on, also when a shard is lost", async (t) => {
    const { shards, router } = await start(t, [0, 1, 2], 2);
    const areTwo = () =>
      [...(router.cluster.current()?.placement.layers.values() ?? [])].every((replicas) =>
        replicas.every((copies) => copies.length >= 2),
      );
    assert.equal(epochOf(router), 1);
    assert.ok(areTwo());
    await shards[1].close();
    await settled([router], [0, 2]);
    assert.ok(areTwo());
    assert.match(
      router.plane.follower.stored()?.why ?? "",
      /copies are lacking of those that are asked for, then 0;/,
    );
  });

  it("serves without a listed shard that can not be used in time, and says so until then", async (t) => {
    const shard = await startTestShard({ rank: 0, weights: "f32" });
    const nobody = `127.0.0.1:${await freePort()}`;
    const router = await startTestRouter(checkpoint, "alone", {
      shards: [shard.address, nobody],
      shardsTimeout: 0.5,
    });
    t.after(async () => {
      await router.close();
      await shard.close();
    });
    const says = new RegExp(`^no placement yet: 1 of 2 shards can be used; shard ${nobody}: .`);
    await waitFor("the reason", () => says.test(router.cluster.unavailableReason() ?? ""));
    await router.cluster.ready();
    assert.equal(router.cluster.unavailableReason(), undefined);
    await waitFor("why", () => router.plane.follower.stored() !== undefined);
    const why = router.plane.follower.stored()?.why ?? "";
    assert.ok(why.startsWith(`the first placement, on 1 shard; without shard ${nobody}: `), why);
  });
});
