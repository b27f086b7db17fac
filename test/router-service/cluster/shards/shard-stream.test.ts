import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { Server, type ServerDuplexStream } from "@grpc/grpc-js";
import fc from "fast-check";

import { bindServer, serverOptions, stopServer } from "../../../../core/platform/grpc.ts";
import { encodePartialSum, statusCrc } from "../../../../core/wire.ts";
import {
  DispatchErrorCode,
  ExpertServiceService,
  type PartialSum,
  type RouterMessage,
  type ShardMessage,
  ShardStatus,
} from "../../../../proto/gen/switchyard/v1/expert.ts";
import {
  DispatchFailedError,
  DispatchTimeoutError,
  PlacementRefusedError,
  ShardLostError,
} from "../../../../router-service/cluster/errors.ts";
import { shardPlacement } from "../../../../router-service/cluster/shards/shard-placement.ts";
import { ShardStream } from "../../../../router-service/cluster/shards/shard-stream.ts";
import { packRows } from "../../../../core/wire-rows.ts";
import { testValues } from "../../../../bench/rig/expert-reference.ts";

type Kind = NonNullable<RouterMessage["kind"]>;

/** What a shard gone wrong does with each message. */
type Script = (kind: Kind, call: ServerDuplexStream<RouterMessage, ShardMessage>) => void;

const HELLO = {
  protocolVersion: 1,
  modelHash: "aa",
  weights: "f32",
  experts: "auto",
  routerId: "test",
};
const HEADER = { epoch: 1, layer: 2, timeoutMs: 1000, hiddenSize: 8, topK: 1, traceparent: "" };
const ROWS = {
  rows: packRows(testValues(16, 1), 8, "f32"),
  expertIds: Uint16Array.of(0, 1),
  topkWeights: Float32Array.of(1, 1),
};
const SUMS = testValues(16, 2);
const TIMES = { queueUs: 3, computeUs: 4 };

describe("a stream to a shard", () => {
  let script: Script = () => {};
  let server: Server;
  let address: string;
  before(async () => {
    server = new Server(serverOptions);
    server.addService(ExpertServiceService, {
      connect: (call: ServerDuplexStream<RouterMessage, ShardMessage>) => {
        call.on("data", ({ kind }: RouterMessage) => kind && script(kind, call));
        call.on("error", () => {});
      },
    });
    address = `127.0.0.1:${await bindServer(server, "127.0.0.1:0")}`;
  });
  after(() => stopServer(server, 100));

  /** A stream whose shard answers dispatches like this. */
  const withAnswer = (answer: (dispatchId: number) => ShardMessage["kind"]) => {
    script = (kind, call) => {
      if (kind.$case === "dispatch") call.write({ kind: answer(kind.value.dispatchId) });
    };
    return new ShardStream(address, "shard 1");
  };
  const partialSum = (dispatchId: number, change: Partial<PartialSum> = {}) => ({
    $case: "partialSum" as const,
    value: { ...encodePartialSum(dispatchId, 2, SUMS, TIMES), ...change },
  });

  it("brings the answer with its times and bytes", async () => {
    const stream = withAnswer((id) => partialSum(id));
    const handle = stream.dispatch(HEADER, ROWS);
    assert.equal(handle.bytesOut, 64 + 4 + 8);
    assert.deepEqual(await handle.answer, { sums: SUMS, bytesIn: 64, times: TIMES });
    stream.end("done");
  });

  it("never takes a partial sum with flipped bits, and takes the next one", async () => {
    let damage: (value: PartialSum) => PartialSum = (value) => value;
    const stream = withAnswer((id) => ({
      $case: "partialSum",
      value: damage(encodePartialSum(id, 2, SUMS, TIMES)),
    }));
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: 64 * 8 + 63 }), async (bit) => {
        damage = (value) => {
          if (bit >= 64 * 8 + 32)
            return { ...value, crc32: (value.crc32 ^ (1 << (bit % 32))) >>> 0 };
          if (bit >= 64 * 8)
            return { ...value, numRows: (value.numRows ^ (1 << (bit % 32))) >>> 0 };
          const sums = value.sums.slice();
          sums[bit >> 3] ^= 1 << (bit & 7);
          return { ...value, sums };
        };
        await assert.rejects(
          stream.dispatch(HEADER, ROWS).answer,
          (error) =>
            error instanceof DispatchFailedError &&
            error.code === DispatchErrorCode.DISPATCH_ERROR_CODE_CHECKSUM &&
            /shard 1 .*layer 2.*crc32/.test(error.message),
        );
        damage = (value) => value;
        assert.deepEqual((await stream.dispatch(HEADER, ROWS).answer).sums, SUMS);
      }),
    );
    stream.end("done");
  });

  it("never takes the answer of another dispatch", async () => {
    // The right rows and checksum, but of the dispatch before.
    const stream = withAnswer((id) => partialSum(id - 1));
    const [first, second] = [0, 1].map(() => stream.dispatch({ ...HEADER, timeoutMs: 200 }, ROWS));
    assert.deepEqual((await first.answer).sums, SUMS);
    await assert.rejects(second.answer, DispatchTimeoutError);
    const forged = withAnswer((id) => partialSum(id + 1, { dispatchId: id }));
    await assert.rejects(forged.dispatch(HEADER, ROWS).answer, /crc32/);
    for (const one of [stream, forged]) one.end("done");
  });

  it("stays after a timeout where the shard has spoken since, and ends where it has long been silent", async () => {
    const hello = { kind: { $case: "hello" as const, value: { ...SHARD_HELLO } } };
    script = (kind, call) => kind.$case === "dispatch" && call.write(hello);
    const speaking = new ShardStream(address, "shard 1");
    const short = { ...HEADER, timeoutMs: 100 };
    await assert.rejects(speaking.dispatch(short, ROWS).answer, /layer 2 within 100 ms/);
    script = (kind, call) =>
      kind.$case === "dispatch" && call.write({ kind: partialSum(kind.value.dispatchId) });
    assert.deepEqual((await speaking.dispatch(short, ROWS).answer).sums, SUMS);
    speaking.end("done");

    script = () => {};
    const silent = new ShardStream(address, "shard 1");
    const long = { ...HEADER, timeoutMs: 2000 };
    await assert.rejects(silent.dispatch(long, ROWS).answer, DispatchTimeoutError);
    assert.match(await silent.ended, /^no message for \d+ ms$/);
    await assert.rejects(silent.dispatch(short, ROWS).answer, ShardLostError);
  });

  it("tells the shard of a cancelled dispatch, and ignores its late answer", async () => {
    const { promise: cancelled, resolve } = Promise.withResolvers<number>();
    script = (kind, call) => {
      if (kind.$case !== "cancel") return;
      call.write({ kind: partialSum(kind.value.dispatchId) });
      resolve(kind.value.dispatchId);
    };
    const stream = new ShardStream(address, "shard 1");
    const handle = stream.dispatch(HEADER, ROWS);
    handle.cancel(new Error("not wanted"));
    await assert.rejects(handle.answer, /not wanted/);
    assert.equal(await cancelled, 1);
    script = (kind, call) =>
      kind.$case === "dispatch" && call.write({ kind: partialSum(kind.value.dispatchId) });
    assert.deepEqual((await stream.dispatch(HEADER, ROWS).answer).sums, SUMS);
    stream.end("done");
  });

  it("ends where the shard says no hello, acknowledges nothing, or another epoch", async () => {
    script = () => {};
    const mute = new ShardStream(address, "shard 1");
    await assert.rejects(mute.hello(HELLO, 50), /shard 1 is lost: no hello within 50 ms/);
    const placement = placementOne();
    const lazy = new ShardStream(address, "shard 1");
    await assert.rejects(lazy.place(placement, 50), /placement 1 is not acknowledged within 50 ms/);
    const ack = { numExperts: 1, residentBytes: 1, checkpointBytesRead: 1 };
    script = (_, call) =>
      call.write({ kind: { $case: "placementAck", value: { epoch: 2, ...ack } } });
    const confused = new ShardStream(address, "shard 1");
    await assert.rejects(
      confused.place(placement, 1000),
      /acknowledges placement 2, which was not/,
    );
    const refused = { epoch: 2, reason: "no room", supersededBy: 0 };
    script = (_, call) => call.write({ kind: { $case: "placementRefused", value: refused } });
    const wrong = new ShardStream(address, "shard 1");
    await assert.rejects(wrong.place(placement, 1000), /refuses placement 2, which was not sent/);
  });

  it("takes an answer for each time that a placement was sent", async () => {
    let answers = 0;
    const ack = { epoch: 1, residentBytes: 1, checkpointBytesRead: 1 };
    const refused = { epoch: 1, reason: "no room", supersededBy: 0 };
    script = ({ $case }, call) => {
      if ($case === "dispatch") call.write({ kind: partialSum(1) });
      if ($case !== "placement" || ++answers < 3) return;
      for (const numExperts of [1, 2]) {
        call.write({ kind: { $case: "placementAck", value: { ...ack, numExperts } } });
      }
      call.write({ kind: { $case: "placementRefused", value: refused } });
    };
    const stream = new ShardStream(address, "shard 1");
    const [first, second, third] = [1, 2, 3].map(() => stream.place(placementOne(), 1000));
    assert.equal((await first).numExperts, 1);
    assert.equal((await second).numExperts, 2);
    await assert.rejects(third, PlacementRefusedError);
    assert.deepEqual((await stream.dispatch(HEADER, ROWS).answer).sums, SUMS);
    stream.end("done");
  });

  it("ends with the shard's count where a message of the shard's did not come", async () => {
    const status = ShardStatus.create({ messagesRead: 1, messagesSent: 2 });
    status.crc32 = statusCrc(status);
    script = (_, call) => call.write({ kind: { $case: "status", value: status } });
    const stream = new ShardStream(address, "shard 1");
    const { answer } = stream.dispatch(HEADER, ROWS);
    await assert.rejects(answer, /shard 1 is lost: the shard has sent 2 messages, 1 came/);
  });

  it("ends where a bit of the shard's status is flipped, which is not told", async () => {
    const status = ShardStatus.create({ messagesRead: 1, messagesSent: 1 });
    status.crc32 = statusCrc(status);
    const flipped = { ...status, draining: true };
    script = (_, call) => call.write({ kind: { $case: "status", value: flipped } });
    const told: ShardStatus[] = [];
    const stream = new ShardStream(address, "shard 1", (one) => told.push(one));
    const { answer } = stream.dispatch(HEADER, ROWS);
    await assert.rejects(
      answer,
      /shard 1 is lost: crc32: the shard's status has \w+, it states \w+/,
    );
    assert.deepEqual(told, []);
  });

  it("ends with the reason that the shard gives, every pending dispatch with it", async () => {
    script = (kind, call) =>
      kind.$case === "cancel" && call.emit("error", { code: 9, details: "model_hash: no" });
    const stream = new ShardStream(address, "shard 1");
    const pending = [1, 2, 3].map(() => stream.dispatch(HEADER, ROWS));
    const lost = pending
      .slice(1)
      .map(({ answer }) => assert.rejects(answer, /shard 1 is lost: model_hash: no/));
    pending[0].cancel(new Error("not wanted"));
    await assert.rejects(pending[0].answer, /not wanted/);
    await Promise.all(lost);
  });
});

/** Placement 1, of one expert on rank 1. */
function placementOne() {
  const layers = new Map([[0, [[{ rank: 1, share: 1 }]]]]);
  const stored = { placement: { epoch: 1, layers }, weights: "f32", experts: "f32" } as const;
  return shardPlacement(stored, 1, undefined, 1);
}

const SHARD_HELLO = {
  protocolVersion: 1,
  modelHash: "aa",
  weights: "f32",
  experts: "auto",
  rank: 1,
  adapter: "cpu",
  shaderF16: false,
  memoryBytes: 1,
  conformanceTolerance: 0,
  incarnation: "1",
  pairsPerSecond: 0,
  formatSpeeds: [],
  crc32: 0,
};
