import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { status } from "@grpc/grpc-js";

import { DispatchErrorCode } from "../../proto/gen/switchyard/v1/expert.ts";
import { createGate } from "../support/gated-device.ts";
import { greeted, later, place, refusedCode, sumsOf, withShard } from "../support/placed-shard.ts";
import type { TestShard } from "../support/shards.ts";
import {
  dispatchOf,
  placedConnection,
  placementOf,
  type ShardConnection,
} from "../../bench/rig/shard-connection.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { EXPERT_BYTES, NUM_LAYERS } from "../support/tiny-experts.ts";

const WRONG_EPOCH = DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH;

/** A shard with two routers of experts 1 and 2 in epoch 1, and a run of the first one that holds up what would change slots. */
interface HeldShard {
  readonly shard: TestShard;
  readonly first: ShardConnection;
  readonly second: ShardConnection;
  /** Lets the run end, and gives its sums. */
  readonly letGo: () => Promise<Uint8Array>;
  /** What they are to be. */
  readonly expected: Uint8Array;
}

async function withHeldShard(body: (held: HeldShard) => Promise<void>): Promise<void> {
  const gate = createGate();
  gate.open();
  await withShard(
    async (shard) => {
      const first = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const second = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const expected = await sumsOf(first, 1, [1, 2, 65535, 65535]);
      gate.shut();
      const begun = gate.begun();
      first.send({ $case: "dispatch", value: dispatchOf([1, 2, 65535, 65535]) });
      await waitFor("the run", () => gate.begun() > begun);
      const letGo = async () => {
        gate.open();
        return (await first.next("partialSum")).sums;
      };
      await body({ shard, first, second, letGo, expected });
      first.close();
      second.close();
    },
    { wrapDevice: gate.wrap },
  );
}

describe("two live epochs", () => {
  it("are both served, share what both name, and the older one goes when it is released", async () => {
    await withShard(async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2, 3]);
      const before = await sumsOf(connection, 1, [1, 2, 3, 65535]);
      const read = shard.checkpoint.bytesRead();
      const ack = await place(connection, later(shard.checkpoint, 2, [2, 3, 0, 7]));
      assert.equal(ack.numExperts, NUM_LAYERS * 5);
      assert.equal(ack.residentBytes, NUM_LAYERS * 5 * EXPERT_BYTES);
      assert.equal(ack.checkpointBytesRead - read, NUM_LAYERS * 2 * (EXPERT_BYTES / 2));
      assert.deepEqual(await sumsOf(connection, 1, [1, 2, 3, 65535]), before);
      const shared = await sumsOf(connection, 1, [2, 3, 65535, 65535]);
      assert.deepEqual(await sumsOf(connection, 2, [2, 3, 65535, 65535]), shared);
      const NOT_HELD = DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD;
      assert.equal(await refusedCode(connection, 2, [1, 2, 3, 7]), NOT_HELD);

      connection.send({ $case: "release", value: { oldestLiveEpoch: 2, abandonedEpochs: [] } });
      await waitFor(
        "the release",
        () => connection.status()?.residentBytes === NUM_LAYERS * 4 * EXPERT_BYTES,
      );
      assert.deepEqual(connection.status()?.epochs, [2]);
      assert.equal(await refusedCode(connection, 1, [2, 2, 3, 3]), WRONG_EPOCH);
      assert.deepEqual(await sumsOf(connection, 2, [2, 3, 65535, 65535]), shared);
      connection.close();
    });
  });

  it("are both served while one is loaded, run after run", async () => {
    await withHeldShard(async ({ shard, first, second, letGo, expected }) => {
      // The layer's slots change while the run is under way: it must see the old ones.
      second.send({ $case: "placement", value: later(shard.checkpoint, 2, [0, 1, 2, 3]) });
      assert.deepEqual(await letGo(), expected);
      for (let i = 0; i < 20; i++) {
        assert.deepEqual(await sumsOf(first, 1, [1, 2, 65535, 65535]), expected);
      }
      await second.next("placementAck");
      assert.deepEqual(await sumsOf(second, 2, [1, 2, 65535, 65535]), expected);
    });
  });

  it("stay while any connected router uses them; a router that is gone does not count", async () => {
    await withShard(async (shard) => {
      const slow = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const fast = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      await place(fast, later(shard.checkpoint, 2, [2, 3], 2));
      await sumsOf(slow, 1, [1, 2, 65535, 65535]);
      slow.close();
      await waitFor("epoch 1 to go", () => fast.status()?.epochs.join() === "2");
      await waitFor(
        "its experts to go",
        () => fast.status()?.residentBytes === NUM_LAYERS * 2 * EXPERT_BYTES,
      );
      fast.close();
    });
  });

  it("stay resident while no router is connected, and cost nothing to one that comes back", async () => {
    await withShard(async (shard) => {
      const first = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      await place(first, later(shard.checkpoint, 2, [2, 3]));
      first.close();
      await first.ended;
      const read = shard.checkpoint.bytesRead();
      const again = await greeted(shard);
      const placements = [
        placementOf(shard.checkpoint, [1, 2]),
        later(shard.checkpoint, 2, [2, 3]),
      ];
      for (const value of placements) again.send({ $case: "placement", value });
      assert.equal((await again.next("placementAck")).epoch, 1);
      assert.equal((await again.next("placementAck")).epoch, 2);
      assert.equal(shard.checkpoint.bytesRead(), read);
      again.close();
    });
  });

  it("are loaded in their order where none is live and a router needs both", async () => {
    await withShard(async (shard) => {
      const connection = await greeted(shard);
      const placements = [
        placementOf(shard.checkpoint, [1, 2]),
        later(shard.checkpoint, 2, [2, 3]),
      ];
      for (const value of placements) connection.send({ $case: "placement", value });
      assert.equal((await connection.next("placementAck")).epoch, 1);
      assert.equal((await connection.next("placementAck")).epoch, 2);
      connection.close();
    });
  });
});

describe("a row's sum", () => {
  it("has the same bits in whatever slots its experts are, on every device", async () => {
    for (const device of ["cpu", "webgpu"] as const) {
      await withShard(
        async (shard) => {
          const { checkpoint } = shard;
          const connection = await placedConnection(shard.address, checkpoint, [3, 5, 7]);
          const before = await sumsOf(connection, 1, [7, 3, 65535, 65535]);
          // 9 takes the slot of 5, between the others; then all slots are made anew.
          await place(connection, later(checkpoint, 2, [3, 9, 7], 2));
          const expected = await sumsOf(connection, 2, [7, 9, 3, 65535]);
          const loaded = place(connection, later(checkpoint, 3, [0, 1, 2, 3, 4, 7, 9, 10], 2));
          const other = await placedConnection(shard.address, checkpoint, [3, 9, 7], {
            epoch: 2,
            oldestLiveEpoch: 2,
          });
          for (let i = 0; i < 10; i++) {
            assert.deepEqual(await sumsOf(other, 2, [7, 9, 3, 65535]), expected, device);
          }
          await loaded;
          assert.deepEqual(await sumsOf(connection, 3, [7, 9, 3, 65535]), expected, device);
          await place(connection, later(checkpoint, 4, [7, 3], 4));
          assert.deepEqual(await sumsOf(connection, 4, [7, 3, 65535, 65535]), before, device);
          connection.close();
          other.close();
        },
        { device, weights: "f32" },
      );
    }
  });
});

describe("a placement beside a live one", () => {
  it("that does not fit is refused with bytes and limit; the live one is served on, and one that fits is taken", async () => {
    await withShard(
      async (shard) => {
        const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
        const expected = await sumsOf(connection, 1, [1, 2, 65535, 65535]);
        const value = later(shard.checkpoint, 2, [2, 3, 4]);
        connection.send({ $case: "placement", value });
        const { epoch, reason, supersededBy } = await connection.next("placementRefused");
        assert.equal(epoch, 2);
        assert.equal(supersededBy, 0);
        const limits = `beside epoch 1 needs ${12 * EXPERT_BYTES} bytes.* at most ${9 * EXPERT_BYTES} `;
        assert.match(reason, new RegExp(limits));
        assert.deepEqual(await sumsOf(connection, 1, [1, 2, 65535, 65535]), expected);
        const ack = await place(connection, later(shard.checkpoint, 3, [2, 3]));
        assert.equal(ack.residentBytes, 9 * EXPERT_BYTES, "the memory is full");
        connection.send({ $case: "release", value: { oldestLiveEpoch: 3, abandonedEpochs: [] } });
        await place(connection, later(shard.checkpoint, 4, [3, 5], 3));
        connection.close();
      },
      { memoryLimit: 9 * EXPERT_BYTES },
    );
  });

  it("takes the memory of epochs that no connected router uses", async () => {
    await withShard(
      async (shard) => {
        const first = await placedConnection(shard.address, shard.checkpoint, [1, 2, 3]);
        first.close();
        await first.ended;
        const second = await greeted(shard);
        await place(second, later(shard.checkpoint, 7, [4, 5, 6]));
        await waitFor("the word", () => second.status()?.epochs.join() === "7");
        second.close();
      },
      { memoryLimit: 9 * EXPERT_BYTES },
    );
  });

  it("gives way to a newer one, nothing of it stays, and both are answered", async () => {
    await withShard(
      async (shard) => {
        const connection = await placedConnection(shard.address, shard.checkpoint, [1]);
        const values = [
          later(shard.checkpoint, 2, [1, 2, 3, 4]),
          later(shard.checkpoint, 3, [1, 8, 9]),
        ];
        for (const value of values) connection.send({ $case: "placement", value });
        const refused = await connection.next("placementRefused");
        assert.deepEqual([refused.epoch, refused.supersededBy], [2, 3]);
        assert.match(refused.reason, /epoch 2 gives way to epoch 3/);
        const ack = await connection.next("placementAck");
        assert.equal(ack.epoch, 3);
        assert.equal(ack.residentBytes, NUM_LAYERS * 3 * EXPERT_BYTES);
        assert.equal(await refusedCode(connection, 2, [1, 1, 1, 1]), WRONG_EPOCH);
        await sumsOf(connection, 3, [1, 8, 9, 65535]);
        connection.close();
      },
      // Enough for either beside epoch 1, not for both.
      { memoryLimit: NUM_LAYERS * 4 * EXPERT_BYTES },
    );
  });

  it("is loaded before a newer one of another router, until its own router has left it", async () => {
    for (const abandons of [false, true]) {
      await withHeldShard(async ({ shard, first, second, letGo }) => {
        first.send({ $case: "placement", value: later(shard.checkpoint, 2, [1, 2, 3]) });
        // Its answer says that the placement has arrived.
        assert.equal(await refusedCode(first, 9, [1, 1, 1, 1]), WRONG_EPOCH);
        second.send({ $case: "placement", value: later(shard.checkpoint, 3, [1, 2, 4]) });
        assert.equal(await refusedCode(second, 9, [1, 1, 1, 1]), WRONG_EPOCH);
        if (abandons) {
          first.send({ $case: "release", value: { oldestLiveEpoch: 1, abandonedEpochs: [2] } });
          assert.equal(await refusedCode(first, 9, [1, 1, 1, 1]), WRONG_EPOCH);
        }
        await letGo();
        if (abandons) assert.equal((await first.next("placementRefused")).supersededBy, 3);
        else assert.equal((await first.next("placementAck")).epoch, 2);
        assert.equal((await second.next("placementAck")).epoch, 3);
      });
    }
  });

  it("whose loading fails leaves the live one as it was, nothing of its own, and no progress that never ends", async () => {
    const gate = createGate();
    const shown: string[] = [];
    gate.open();
    await withShard(
      async (shard) => {
        const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
        const expected = await sumsOf(connection, 1, [1, 2, 65535, 65535]);
        gate.failLoads(new Error("no such luck"));
        const value = later(shard.checkpoint, 2, [2, 3]);
        connection.send({ $case: "placement", value });
        assert.match((await connection.next("placementRefused")).reason, /no such luck/);
        assert.deepEqual(await sumsOf(connection, 1, [1, 2, 65535, 65535]), expected);
        await waitFor(
          "its slots to go",
          () => connection.status()?.residentBytes === NUM_LAYERS * 2 * EXPERT_BYTES,
        );
        gate.failLoads(undefined);
        await place(connection, { ...value });
        await waitFor("the word", () => connection.status()?.epochs.join() === "1,2");
        assert.deepEqual(shown, ["6 finished", "3 stopped", "3 finished"]);
        connection.close();
      },
      {
        wrapDevice: gate.wrap,
        startProgress: (total) => ({
          update: () => {},
          finish: () => void shown.push(`${total} finished`),
          stop: () => void shown.push(`${total} stopped`),
        }),
      },
    );
  });
});

describe("a release", () => {
  it("of an epoch that was not placed ends the stream, and frees nothing", async () => {
    await withShard(async (shard) => {
      const holder = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const wrong = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      wrong.send({ $case: "release", value: { oldestLiveEpoch: 9_000_000, abandonedEpochs: [] } });
      const { code, details } = await wrong.ended;
      assert.equal(code, status.INVALID_ARGUMENT);
      assert.match(details, /oldest_live_epoch 9000000, the newest placement is of 1/);
      await sumsOf(holder, 1, [1, 2, 65535, 65535]);
      holder.close();
    });
  });
});
