import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import fc from "fast-check";

import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { f32FromBytes } from "../../core/tensor.ts";
import { decodePartialSum } from "../../core/wire.ts";
import {
  DispatchErrorCode,
  RouterMessage,
  type Dispatch,
} from "../../proto/gen/switchyard/v1/expert.ts";
import {
  dispatchOf,
  helloFor,
  openShardConnection,
  placedConnection,
  placementOf,
  type AnswerOf,
  type ShardConnection,
} from "../../bench/rig/shard-connection.ts";
import { startTestShard, type TestShard } from "../support/shards.ts";

const HELD = [0, 2, 3, 5, 8];

describe("a dispatch", () => {
  let shard: TestShard;
  let connection: ShardConnection;
  let expected: Float32Array;
  const good = dispatchOf([0, 2, 3, 5, 8, 65535, 65535, 0], { dispatchId: 77 });
  before(async () => {
    shard = await startTestShard();
    connection = await placedConnection(shard.address, shard.checkpoint, HELD);
    const device = createCpuExpertDevice(shard.checkpoint.config);
    device.allocate(
      0,
      Array.from({ length: 12 }, () => "f32"),
    );
    for (const id of HELD) device.load(0, id, await readExpert(shard.checkpoint, 0, id));
    const slots = Uint32Array.of(0, 2, 3, 5, 8, 0xffffffff, 0xffffffff, 0);
    const weights = f32FromBytes(good.topkWeights);
    expected = await device.run(0, f32FromBytes(good.hiddenStates), slots, weights);
  });
  after(async () => {
    connection.close();
    await shard.close();
  });

  const assertGood = (answer: AnswerOf<"partialSum">) => {
    assert.equal(answer.dispatchId, 77);
    assert.deepEqual(decodePartialSum(answer, 2, 64), expected);
  };

  it("is answered with the sums over the experts that the shard holds", async () => {
    connection.send({ $case: "dispatch", value: good });
    assertGood(await connection.next("partialSum"));
  });

  const codes = DispatchErrorCode;
  for (const [what, dispatch, code, text] of [
    [
      "another epoch",
      dispatchOf([0, 2, 3, 5], { epoch: 2 }),
      codes.DISPATCH_ERROR_CODE_WRONG_EPOCH,
      /epoch 2.* epoch 1/,
    ],
    [
      "an expert that is elsewhere",
      dispatchOf([0, 2, 3, 4]),
      codes.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
      /layer 0 expert 4/,
    ],
    [
      "an expert that no model has",
      dispatchOf([0, 2, 3, 60_000]),
      codes.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
      /layer 0 expert 60000/,
    ],
    [
      "a layer that is not there",
      dispatchOf([0, 2, 3, 5], { layer: 9 }),
      codes.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
      /layer 9/,
    ],
    [
      "no time at all",
      dispatchOf([0, 2, 3, 5], { timeoutMs: 0 }),
      codes.DISPATCH_ERROR_CODE_DEADLINE,
      /deadline passed/,
    ],
  ] as const) {
    it(`with ${what} is answered with an error, and the next one with its sums`, async () => {
      connection.send({ $case: "dispatch", value: dispatch });
      const error = await connection.next("error");
      assert.equal(error.code, code);
      assert.match(error.message, text);
      connection.send({ $case: "dispatch", value: good });
      assertGood(await connection.next("partialSum"));
    });
  }

  it("and its answer may be far larger than gRPC's usual four MiB", async () => {
    const numRows = 20_000;
    connection.send({
      $case: "dispatch",
      value: dispatchOf(Array.from({ length: numRows * 4 }, () => 65535)),
    });
    const answer = await connection.next("partialSum");
    assert.equal(answer.sums.length, numRows * 64 * 4);
  });

  it("with flipped bits in any field is answered with CHECKSUM, and the next one with its sums", async () => {
    const numbers = ["epoch", "layer", "timeoutMs", "numRows", "hiddenSize", "topK"] as const;
    const bytes = ["hiddenStates", "expertIds", "topkWeights"] as const;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...numbers, "crc32" as const, "dtype" as const, ...bytes),
        fc.uniqueArray(fc.nat(), { minLength: 1, maxLength: 3 }),
        async (field, places) => {
          const dispatch: Dispatch = { ...good };
          for (const place of places) {
            const value = dispatch[field];
            if (typeof value === "number") {
              Object.assign(dispatch, { [field]: (value ^ (1 << (place % 31))) >>> 0 });
            } else {
              const flipped = value.slice();
              const bit = place % (flipped.length * 8);
              flipped[bit >> 3] ^= 1 << (bit & 7);
              Object.assign(dispatch, { [field]: flipped });
            }
          }
          connection.send({ $case: "dispatch", value: dispatch });
          connection.send({ $case: "dispatch", value: good });
          // Two flips may cancel each other out: then the answer is the right one.
          const same = messageBytes(dispatch).equals(messageBytes(good));
          if (same) {
            assertGood(await connection.next("partialSum"));
          } else {
            const { code, message } = await connection.next("error");
            assert.equal(code, codes.DISPATCH_ERROR_CODE_CHECKSUM, message);
          }
          assertGood(await connection.next("partialSum"));
        },
      ),
    );
  });

  it("whose bytes on the wire are damaged is never answered wrongly, and the next stream works", async () => {
    const bytes = messageBytes(good);
    let damaged = await placedConnection(shard.address, shard.checkpoint, HELD);
    let endedStreams = 0;
    await fc.assert(
      fc.asyncProperty(
        // Half of them in the first bytes, where the structure of the message is.
        fc.oneof(fc.nat({ max: 60 * 8 }), fc.nat({ max: bytes.length * 8 - 1 })),
        async (bit) => {
          const flipped = Buffer.from(bytes);
          flipped[bit >> 3] ^= 1 << (bit & 7);
          damaged.sendBytes(flipped);
          damaged.send({ $case: "dispatch", value: good });
          for (let answers = 0; answers < 2; answers++) {
            const answer = await damaged.nextOrEnd();
            if (!("$case" in answer)) {
              assert.notEqual(answer.code, 0);
              endedStreams++;
              damaged = await placedConnection(shard.address, shard.checkpoint, HELD);
              return;
            }
            if (answer.$case === "partialSum") {
              assertGood(answer.value);
              // The good one's: the damaged one was taken as a cancel or the like.
              if (answers === 0) return;
            } else {
              assert.equal(answer.$case, "error");
            }
          }
        },
      ),
      { numRuns: 300 },
    );
    assert.ok(endedStreams > 0, "some flips break the framing");
    damaged.close();
  });
});

describe("a placement whose bytes on the wire are damaged", () => {
  it("is never taken for another, and what the shard holds stays", async (t) => {
    const shard = await startTestShard();
    t.after(() => shard.close());
    const holder = await placedConnection(shard.address, shard.checkpoint, HELD);
    holder.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5]) });
    const { sums } = await holder.next("partialSum");
    const placement = placementOf(shard.checkpoint, HELD);
    const bytes = RouterMessage.encode({ kind: { $case: "placement", value: placement } }).finish();
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: bytes.length * 8 - 1 }), async (bit) => {
        const flipped = Buffer.from(bytes);
        flipped[bit >> 3] ^= 1 << (bit & 7);
        const connection = openShardConnection(shard.address);
        connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
        await connection.next("hello");
        connection.sendBytes(flipped);
        // Damage that leaves half a message shows only when no more comes.
        connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
        const answer = await connection.nextOrEnd();
        if ("$case" in answer && answer.$case === "placementAck") {
          // A length may be damaged without consequence.
          const { kind } = RouterMessage.decode(flipped);
          assert.deepEqual(kind?.value, placement);
        } else {
          refused++;
        }
        connection.close();
        holder.send({ $case: "dispatch", value: dispatchOf([0, 2, 3, 5]) });
        assert.deepEqual((await holder.next("partialSum")).sums, sums);
      }),
      { numRuns: 200 },
    );
    assert.ok(refused > 100, `${refused} refused`);
    holder.close();
  });
});

function messageBytes(dispatch: Dispatch): Buffer {
  return Buffer.from(
    RouterMessage.encode({ kind: { $case: "dispatch", value: dispatch } }).finish(),
  );
}
