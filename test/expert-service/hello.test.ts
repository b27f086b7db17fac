import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { status } from "@grpc/grpc-js";

import { ConformanceError } from "../../core/gpu/conformance.ts";
import { PROTOCOL_VERSION } from "../../core/wire.ts";
import { checkHelloCrc } from "../../core/handshake.ts";
import { dispatchOf, helloFor, openShardConnection } from "../../bench/rig/shard-connection.ts";
import { startTestShard, type TestShard } from "../support/shards.ts";

describe("a shard's hello", () => {
  let shard: TestShard;
  before(async () => {
    shard = await startTestShard({
      rank: 3,
      weights: "f32",
      experts: "int8",
      memoryLimit: 123_456_789,
    });
  });
  after(() => shard.close());

  it("says who it is", async () => {
    const connection = openShardConnection(shard.address);
    connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
    const whole = await connection.next("hello");
    checkHelloCrc(whole);
    const { incarnation, crc32: _, ...hello } = whole;
    assert.match(incarnation, /^[0-9a-f-]{36}$/);
    assert.deepEqual(hello, {
      protocolVersion: PROTOCOL_VERSION,
      modelHash: shard.checkpoint.modelHash,
      weights: "f32",
      experts: "int8",
      rank: 3,
      adapter: "cpu",
      shaderF16: false,
      memoryBytes: 123_456_789,
      conformanceTolerance: 0,
      pairsPerSecond: 0,
      formatSpeeds: [],
    });
    connection.close();
  });

  it("declares how far its GPU's kernels are from the plain loops", async () => {
    const onGpu = await startTestShard({ device: "webgpu", weights: "f32" });
    const connection = openShardConnection(onGpu.address);
    connection.send({ $case: "hello", value: helloFor(onGpu.checkpoint) });
    const { conformanceTolerance } = await connection.next("hello");
    assert.ok(
      conformanceTolerance > 0 && conformanceTolerance < 1e-5,
      String(conformanceTolerance),
    );
    connection.close();
    await onGpu.close();
  });

  it("comes after one check, of the formats that the shard will hold", async () => {
    const checks: (readonly string[])[] = [];
    const one = await startTestShard({
      experts: "int4-g32",
      wrapDevice: (device) => ({
        ...device,
        check: async (formats) => {
          checks.push(formats);
        },
      }),
    });
    assert.deepEqual(checks, [["int4-g32"]]);
    await one.close();
  });

  it("is never said where a kernel does not conform: the shard does not start", async () => {
    const error = new ConformanceError("expert down", "llvmpipe", 0.5, 1e-5);
    const starting = startTestShard({
      wrapDevice: (device) => ({ ...device, check: () => Promise.reject(error) }),
    });
    await assert.rejects(
      starting,
      /kernel expert down on llvmpipe: error 5.00e-1 .* at most 0.00001/,
    );
  });

  for (const [field, change] of [
    ["protocol_version", { protocolVersion: 99 }],
    ["model_hash", { modelHash: "00ff" }],
    ["weights", { weights: "f16" }],
    ["weights", { weights: "q4" }],
    ["experts", { experts: "int4-g32" }],
    ["experts", { experts: "q4" }],
  ] as const) {
    const [value] = Object.values(change);
    it(`refuses a router whose ${field} is ${value}, by name and both values`, async () => {
      const connection = openShardConnection(shard.address);
      connection.send({ $case: "hello", value: helloFor(shard.checkpoint, change) });
      const { code, details } = await connection.ended;
      assert.equal(code, status.FAILED_PRECONDITION);
      assert.match(details, new RegExp(`${field}: the router has "?${value}`));
    });
  }

  it("comes first: a placement or dispatch before it, or a second one, ends the stream", async () => {
    const early = openShardConnection(shard.address);
    early.send({ $case: "dispatch", value: dispatchOf([0, 1, 2, 3]) });
    const { code, details } = await early.ended;
    assert.equal(code, status.FAILED_PRECONDITION);
    assert.match(details, /first message is dispatch, expected hello/);
    const twice = openShardConnection(shard.address);
    twice.send({ $case: "hello", value: helloFor(shard.checkpoint) });
    await twice.next("hello");
    twice.send({ $case: "hello", value: helloFor(shard.checkpoint) });
    assert.match((await twice.ended).details, /second hello/);
  });
});
