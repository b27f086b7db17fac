import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { status } from "@grpc/grpc-js";

import { expertBytes } from "../../core/weights.ts";
import type { ExpertFormat, ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import { DispatchErrorCode } from "../../proto/gen/switchyard/v1/expert.ts";
import {
  dispatchOf,
  helloFor,
  openShardConnection,
  placedConnection,
  placementOf,
} from "../../bench/rig/shard-connection.ts";
import { withShard } from "../support/placed-shard.ts";
import { EXPERT_BYTES } from "../support/tiny-experts.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

/** Of one expert in the checkpoint, which is in BF16. */
const FILE_EXPERT_BYTES = EXPERT_BYTES / 2;

describe("a placement", () => {
  it("is all that the shard holds and reads", async () => {
    await withShard(async (shard) => {
      const before = shard.checkpoint.bytesRead();
      const connection = openShardConnection(shard.address);
      connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
      await connection.next("hello");
      assert.equal(shard.checkpoint.bytesRead(), before, "nothing is read before a placement");
      connection.send({ $case: "placement", value: placementOf(shard.checkpoint, [2, 5, 11]) });
      const ack = await connection.next("placementAck");
      assert.equal(ack.epoch, 1);
      assert.equal(ack.numExperts, 9);
      assert.equal(ack.residentBytes, 9 * EXPERT_BYTES);
      assert.equal(ack.checkpointBytesRead, shard.checkpoint.bytesRead());
      assert.equal(ack.checkpointBytesRead - before, 9 * FILE_EXPERT_BYTES);
      connection.close();
    });
  });

  it("sent again costs nothing, by the same router or another", async () => {
    await withShard(async (shard) => {
      const first = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      const read = shard.checkpoint.bytesRead();
      first.send({ $case: "placement", value: placementOf(shard.checkpoint, [2, 1]) });
      assert.equal((await first.next("placementAck")).checkpointBytesRead, read);
      const second = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
      assert.equal(shard.checkpoint.bytesRead(), read);
      first.close();
      second.close();
    });
  });

  it("that differs from another router's in the same epoch is refused, and the other goes on", async () => {
    await withShard(async (shard) => {
      const first = await placedConnection(shard.address, shard.checkpoint, [0, 1, 2, 3]);
      const second = openShardConnection(shard.address);
      second.send({ $case: "hello", value: helloFor(shard.checkpoint) });
      await second.next("hello");
      second.send({ $case: "placement", value: placementOf(shard.checkpoint, [4, 5]) });
      const { code, details } = await second.ended;
      assert.equal(code, status.FAILED_PRECONDITION);
      assert.match(details, /epoch 1 was given by another router/);
      first.send({ $case: "dispatch", value: dispatchOf([0, 1, 2, 3]) });
      await first.next("partialSum");
      first.close();
    });
  });

  it("may change within an epoch once no other router works by it", async () => {
    await withShard(async (shard) => {
      const first = await placedConnection(shard.address, shard.checkpoint, [0, 1]);
      first.close();
      await first.ended;
      const connection = await waitFor("the first router to be forgotten", () =>
        placedConnection(shard.address, shard.checkpoint, [4, 5, 6]),
      );
      connection.send({ $case: "dispatch", value: dispatchOf([4, 5, 6, 65535]) });
      await connection.next("partialSum");
      connection.send({ $case: "dispatch", value: dispatchOf([0, 5, 6, 65535]) });
      assert.match((await connection.next("error")).message, /layer 0 expert 0/);
      connection.close();
    });
  });

  it("of a later epoch frees what it does not name and reads only what is new", async () => {
    await withShard(async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [0, 1]);
      const read = shard.checkpoint.bytesRead();
      const { layers } = placementOf(shard.checkpoint, [0, 1]);
      const next = placementOf(shard.checkpoint, [], {
        epoch: 2,
        oldestLiveEpoch: 2,
        layers: [layers[0], { layer: 2, experts: [{ expertId: 7, splitWeight: 1, format: 0 }] }],
      });
      connection.send({ $case: "placement", value: next });
      const ack = await connection.next("placementAck");
      assert.equal(ack.numExperts, 3);
      assert.equal(ack.residentBytes, 3 * EXPERT_BYTES);
      assert.equal(ack.checkpointBytesRead - read, FILE_EXPERT_BYTES);
      for (const [dispatch, text] of [
        [dispatchOf([0, 1, 0, 1], { epoch: 1 }), /epoch 1/],
        [dispatchOf([0, 1, 0, 1], { epoch: 2, layer: 1 }), /layer 1: the shard holds no expert/],
        [dispatchOf([0, 7, 7, 7], { epoch: 2, layer: 2 }), /layer 2 expert 0/],
      ] as const) {
        connection.send({ $case: "dispatch", value: dispatch });
        assert.match((await connection.next("error")).message, text);
      }
      connection.send({
        $case: "dispatch",
        value: dispatchOf([7, 7, 7, 7], { epoch: 2, layer: 2 }),
      });
      await connection.next("partialSum");
      connection.send({ $case: "placement", value: placementOf(shard.checkpoint, [0, 1]) });
      const { epoch, reason } = await connection.next("placementRefused");
      assert.equal(epoch, 1);
      assert.match(reason, /epoch 1, the router's last one is of epoch 2/);
      connection.close();
    });
  });

  it("with another format of an expert loads its layer anew", async () => {
    await withShard(async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [0, 1]);
      const { layers } = placementOf(shard.checkpoint, [0, 1]);
      const [expert, other] = layers[1].experts;
      const changed = {
        layer: layers[1].layer,
        experts: [{ ...expert, format: 3 as const }, other],
      };
      const next = placementOf(shard.checkpoint, [], {
        epoch: 2,
        oldestLiveEpoch: 2,
        layers: [layers[0], changed, layers[2]],
      });
      connection.send({ $case: "placement", value: next });
      const ack = await connection.next("placementAck");
      const int8Bytes = expertBytes(shard.checkpoint.config, "int8");
      assert.equal(ack.residentBytes, 5 * EXPERT_BYTES + int8Bytes);
      const dispatch = dispatchOf([0, 1, 1, 0], { epoch: 2, layer: layers[1].layer });
      connection.send({ $case: "dispatch", value: dispatch });
      await connection.next("partialSum");
      connection.close();
    });
  });

  const refusals: [string, Partial<ShardPlacement>, RegExp][] = [
    ["of epoch 0", { epoch: 0 }, /epoch 0, expected 1 or more/],
    ["without a dtype", { weights: 0 }, /weights 0, expected F16 or F32/],
    [
      "in another dtype than --weights",
      { weights: 1 },
      /weights f16, the shard's --weights is f32/,
    ],
    ["without a format of experts", { expertFormat: 0 }, /expert_format 0 is unknown/],
    [
      "in another format than --experts-bits",
      { expertFormat: 4 },
      /experts in int4-g32, the shard's --experts-bits is f32/,
    ],
    [
      "with an expert in a format that nobody knows",
      {
        layers: [
          { layer: 1, experts: [{ expertId: 3, splitWeight: 1, format: 99 as ExpertFormat }] },
        ],
      },
      /layer 1 expert 3: format 99 is unknown/,
    ],
    ["of a layer that is not there", { layers: [{ layer: 3, experts: [] }] }, /layer 3 is not/],
    [
      "that names a layer twice",
      {
        layers: [
          { layer: 1, experts: [] },
          { layer: 1, experts: [] },
        ],
      },
      /layer 1 is twice/,
    ],
    [
      "of an expert that is not there",
      { layers: [{ layer: 1, experts: [{ expertId: 12, splitWeight: 1, format: 0 }] }] },
      /layer 1 expert 12, the model has 12/,
    ],
    [
      "that names an expert twice",
      {
        layers: [
          {
            layer: 1,
            experts: [
              { expertId: 3, splitWeight: 1, format: 0 },
              { expertId: 3, splitWeight: 1, format: 0 },
            ],
          },
        ],
      },
      /layer 1 expert 3 is twice/,
    ],
  ];
  it("that no shard can have is refused by name, and a good one works after it", async () => {
    await withShard(
      async (shard) => {
        const send = async (placement: ShardPlacement) => {
          const connection = openShardConnection(shard.address);
          connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
          await connection.next("hello");
          connection.send({ $case: "placement", value: placement });
          return connection;
        };
        for (const [what, change, text] of refusals) {
          const refused = await send(placementOf(shard.checkpoint, [0], change));
          const { code, details } = await refused.ended;
          assert.equal(code, status.FAILED_PRECONDITION, what);
          assert.match(details, text, what);
        }
        const damaged = { ...placementOf(shard.checkpoint, [0]), epoch: 3 };
        assert.match((await (await send(damaged)).ended).details, /crc32/);
        const good = await placedConnection(shard.address, shard.checkpoint, [0]);
        good.close();
        assert.deepEqual(shard.failures, []);
      },
      { weights: "f32", experts: "f32" },
    );
  });

  it("that the device can not hold is refused with bytes and limit, and one that it can hold works after it", async () => {
    await withShard(
      async (shard) => {
        const connection = openShardConnection(shard.address);
        connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
        await connection.next("hello");
        connection.send({ $case: "placement", value: placementOf(shard.checkpoint, [0, 1]) });
        const { code, details } = await connection.ended;
        assert.equal(code, status.RESOURCE_EXHAUSTED);
        const limits = `${6 * EXPERT_BYTES} bytes.*at most ${5 * EXPERT_BYTES} `;
        assert.match(details, new RegExp(limits));
        const good = await placedConnection(shard.address, shard.checkpoint, [0]);
        good.close();
        assert.deepEqual(shard.failures, []);
      },
      { memoryLimit: 5 * EXPERT_BYTES },
    );
  });
});

describe("a dispatch before a placement", () => {
  it("is answered with WRONG_EPOCH", async () => {
    await withShard(async (shard) => {
      const connection = openShardConnection(shard.address);
      connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
      await connection.next("hello");
      connection.send({ $case: "dispatch", value: dispatchOf([0, 1, 2, 3]) });
      const { code } = await connection.next("error");
      assert.equal(code, DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH);
      connection.close();
    });
  });
});
