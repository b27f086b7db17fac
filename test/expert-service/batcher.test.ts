import assert from "node:assert/strict";
import { describe, it } from "node:test";

import type { ExpertDevice } from "../../core/expert-device.ts";
import { Batcher, takeBatch, type QueuedDispatch } from "../../expert-service/batcher.ts";
import { packRows } from "../../core/wire-rows.ts";
import { dispatchCrc } from "../../core/wire.ts";
import { DispatchErrorCode } from "../../proto/gen/switchyard/v1/expert.ts";
import { createGate } from "../support/gated-device.ts";
import {
  dispatchOf,
  placedConnection,
  type ShardConnection,
} from "../../bench/rig/shard-connection.ts";
import { startTestShard } from "../support/shards.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const HELD = [0, 2, 3, 5];

const queued = (dispatchId: number, layer: number, numRows: number, epoch = 1): QueuedDispatch => ({
  stream: {},
  dispatchId,
  epoch,
  layer,
  payload: {
    rows: new Float32Array(numRows * 4),
    expertIds: new Uint16Array(numRows),
    topkWeights: new Float32Array(numRows),
  },
  receivedAt: 0,
  deadlineAt: 1000,
  onSums: () => {},
  onError: () => {},
});

const ids = (queue: readonly QueuedDispatch[]) => queue.map(({ dispatchId }) => dispatchId);

describe("the next run of a shard", () => {
  it("is the oldest dispatch and those of its layer and epoch that fit with it", () => {
    const queue = [
      queued(1, 5, 3),
      queued(2, 6, 1),
      queued(3, 5, 6),
      queued(4, 5, 4),
      queued(5, 5, 1, 2),
      queued(6, 5, 1),
    ];
    const { batch, rest } = takeBatch(queue, 4, 10);
    assert.deepEqual(ids(batch), [1, 3, 6]);
    assert.deepEqual(ids(rest), [2, 4, 5]);
  });

  it("is one dispatch alone where that is larger than a run", () => {
    const { batch, rest } = takeBatch([queued(1, 5, 30), queued(2, 5, 1)], 4, 10);
    assert.deepEqual(ids(batch), [1]);
    assert.deepEqual(ids(rest), [2]);
  });
});

describe("work beside the runs", () => {
  it("goes on at once where there are none, else after as long again", async () => {
    const { promise: running, resolve: end } = Promise.withResolvers<Float32Array>();
    const device = { maxRows: 8, run: () => running } as unknown as ExpertDevice;
    let clock = 100;
    const batcher = new Batcher({
      hiddenSize: 4,
      maxDispatches: 8,
      now: () => clock,
      onStuck: assert.fail,
      runDeadlineMs: 60_000,
      hold: () => ({ device, slots: Uint32Array.of(0) }),
    });
    const goesOn = async (startedAt: number): Promise<boolean> => {
      const stop = new AbortController();
      let done = false;
      const waits = batcher.giveWay(startedAt, 1000, stop.signal).then(
        () => (done = true),
        () => {},
      );
      await new Promise((resolve) => setImmediate(resolve));
      const atOnce = done;
      stop.abort();
      await waits;
      return atOnce;
    };
    assert.equal(await goesOn(0), true);
    batcher.submit(queued(1, 5, 1));
    await waitFor("the run", () => batcher.waiting === 0);
    assert.equal(await goesOn(40), false);
    clock = 110;
    end(new Float32Array(4));
    await batcher.idle();
    clock = 150;
    assert.equal(await goesOn(105), false);
    assert.equal(await goesOn(111), true);
    const startedAt = performance.now();
    await batcher.giveWay(93, 20);
    assert.ok(performance.now() - startedAt > 18);
  });
});

describe("a shard's queue", () => {
  const codes = DispatchErrorCode;

  it("answers what does not fit with OVERLOADED, and what waits with its sums", async () => {
    const gate = createGate();
    const shard = await startTestShard({ maxDispatches: 2, wrapDevice: gate.wrap });
    const connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    const send = (dispatchId: number) =>
      connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5], { dispatchId }) });
    send(1);
    await waitFor("the first run", () => gate.begun() === 1);
    for (const dispatchId of [2, 3, 4]) send(dispatchId);
    const refused = await connection.next("error");
    assert.equal(refused.dispatchId, 4);
    assert.equal(refused.code, codes.DISPATCH_ERROR_CODE_OVERLOADED);
    assert.match(refused.message, /2 dispatches wait, the limit is 2/);
    gate.open();
    const sums: Uint8Array[] = [];
    for (const dispatchId of [1, 2, 3]) {
      const answer = await connection.next("partialSum");
      assert.equal(answer.dispatchId, dispatchId);
      sums.push(answer.sums);
    }
    assert.deepEqual(sums[1], sums[0]);
    assert.deepEqual(sums[2], sums[0]);
    assert.equal(gate.begun(), 2, "those that waited together ran together");
    connection.close();
    await shard.close();
  });

  it("drops what is late, cancelled or without a router, and computes the rest", async () => {
    const gate = createGate();
    const shard = await startTestShard({ wrapDevice: gate.wrap });
    const connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    const other = await placedConnection(shard.address, shard.checkpoint, HELD);
    const send = (to: ShardConnection, dispatchId: number, timeoutMs: number, layer = 0) =>
      to.send({
        $case: "dispatch",
        value: dispatchOf([0, 2, 3, 5], { dispatchId, timeoutMs, layer }),
      });
    send(connection, 1, 5000);
    await waitFor("the first run", () => gate.begun() === 1);
    send(connection, 2, 1);
    send(connection, 3, 5000, 1);
    send(connection, 4, 5000, 2);
    send(other, 5, 5000, 1);
    connection.send({ $case: "cancel", value: { dispatchId: 3 } });
    const cancelled = await connection.next("error");
    assert.equal(cancelled.dispatchId, 3);
    assert.equal(cancelled.code, codes.DISPATCH_ERROR_CODE_DEADLINE);
    other.close();
    await other.ended;
    gate.open();
    assert.equal((await connection.next("partialSum")).dispatchId, 1);
    const late = await connection.next("error");
    assert.equal(late.dispatchId, 2);
    assert.equal(late.code, codes.DISPATCH_ERROR_CODE_DEADLINE);
    assert.equal((await connection.next("partialSum")).dispatchId, 4);
    connection.close();
    await shard.close();
  });

  it("is a failure of the shard where the device does not end a run", async () => {
    const gate = createGate();
    const shard = await startTestShard({ wrapDevice: gate.wrap, runDeadlineMs: 50 });
    const connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5]) });
    await waitFor("the failure", () => shard.failures.length === 1);
    assert.match(shard.failures[0].message, /did not end a run within 50 ms/);
    gate.open();
    await connection.next("partialSum");
    connection.close();
    await shard.close();
  });

  it("answers INTERNAL where the device fails, and goes on when it works again", async () => {
    const gate = createGate();
    gate.open();
    const shard = await startTestShard({ wrapDevice: gate.wrap });
    const connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    gate.failWith(new Error("no such luck"));
    connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5]) });
    const error = await connection.next("error");
    assert.equal(error.code, codes.DISPATCH_ERROR_CODE_INTERNAL);
    assert.match(error.message, /no such luck/);
    gate.failWith(undefined);
    connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5]) });
    await connection.next("partialSum");
    connection.close();
    await shard.close();
  });

  it("sends no sums that are not finite: it answers whose fault they are", async () => {
    const gate = createGate();
    gate.open();
    let spoil = true;
    const shard = await startTestShard({
      wrapDevice: (device) => ({
        ...device,
        create: async (formats) => {
          const inner = await gate.wrap(device).create(formats);
          const run: typeof inner.run = async (...call) => {
            const sums = await inner.run(...call);
            if (spoil) sums[77] = Number.NaN;
            return sums;
          };
          return { ...inner, run };
        },
      }),
    });
    const connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5, 0, 2, 3, 5]) });
    const wrong = await connection.next("error");
    assert.equal(wrong.code, codes.DISPATCH_ERROR_CODE_WRONG_RESULT);
    spoil = false;
    connection.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5, 0, 2, 3, 5]) });
    await connection.next("partialSum");
    const rows = packRows(new Float32Array(64).fill(Number.POSITIVE_INFINITY), 64, "f32");
    const message = { ...dispatchOf([0, 2, 3, 5]), hiddenStates: rows.bytes };
    const value = { ...message, crc32: dispatchCrc(message) };
    connection.send({ $case: "dispatch", value });
    assert.equal((await connection.next("error")).code, codes.DISPATCH_ERROR_CODE_INVALID);
    connection.close();
    await shard.close();
  });
});
