import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { statusCrc } from "../../core/wire.ts";
import { greeted, later, place, sumsOf, withShard } from "../support/placed-shard.ts";
import { placedConnection, placementOf } from "../../bench/rig/shard-connection.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { EXPERT_BYTES } from "../support/tiny-experts.ts";

describe("a shard that is to leave", () => {
  it("says so to every router, and when nothing is placed on it any more", async () => {
    await withShard(async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const other = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      connection.send({ $case: "drain", value: { cancel: false } });
      await waitFor("the word", () => connection.status()?.draining && other.status()?.draining);
      connection.send({ $case: "drain", value: { cancel: true } });
      await waitFor("the word to be taken back", () => connection.status()?.draining === false);
      const drained = shard.shard.drain(20_000);
      await waitFor("the word again", () => connection.status()?.draining);
      assert.equal(connection.status()?.released, false);
      await place(connection, later(shard.checkpoint, 2, [], 2));
      other.close();
      await waitFor("the release", () => connection.status()?.released);
      assert.equal((await drained).reason, "nothing is placed on it");
      await place(connection, later(shard.checkpoint, 3, [1], 3));
      const left = shard.shard.drain(20_000);
      connection.close();
      assert.equal((await left).reason, "no router is connected");
    });
  });

  it("goes after its patience where routers leave things on it", async () => {
    await withShard(async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const end = await shard.shard.drain(60);
      assert.deepEqual(end, { inOrder: false, reason: "not released within 0.06 s" });
      await sumsOf(connection, 1, [1, 2, 65535, 65535]);
      connection.close();
    });
  });
});

describe("a shard's word of itself", () => {
  it("comes with the hello and at once when what it holds changes", async () => {
    await withShard(
      async (shard) => {
        const connection = await greeted(shard);
        const first = await waitFor("the first word", () => connection.status());
        assert.deepEqual(first, {
          draining: false,
          released: false,
          residentBytes: 0,
          memoryBytes: 9 * EXPERT_BYTES,
          waiting: 0,
          epochs: [],
          // The router's hello, and the shard's with this word.
          messagesRead: 1,
          messagesSent: 2,
          crc32: statusCrc(first),
        });
        await place(connection, placementOf(shard.checkpoint, [1]));
        await waitFor("the change", () => connection.status()?.epochs.join() === "1", 500);
        connection.close();
      },
      { memoryLimit: 9 * EXPERT_BYTES },
    );
  });
});
