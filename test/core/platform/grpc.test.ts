import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { Server, status } from "@grpc/grpc-js";

import { OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import { HandshakeError } from "../../../core/handshake.ts";
import {
  bindServer,
  grpcStatusOf,
  serverOptions,
  stopServer,
} from "../../../core/platform/grpc.ts";
import { DispatchTimeoutError, ShardLostError } from "../../../router-service/cluster/errors.ts";
import {
  InvalidRequestError,
  QueueFullError,
  RequestTimeoutError,
  UnavailableError,
} from "../../../router-service/engine/errors.ts";

describe("the status of an error", () => {
  for (const [error, code] of [
    [new InvalidRequestError("temperature is -1", "temperature"), status.INVALID_ARGUMENT],
    [new QueueFullError(5, 5), status.RESOURCE_EXHAUSTED],
    [new UnavailableError("no shard"), status.UNAVAILABLE],
    [new ShardLostError("shard a", "gone"), status.UNAVAILABLE],
    [new DispatchTimeoutError("shard a", 1, 2000), status.UNAVAILABLE],
    [new RequestTimeoutError(600), status.DEADLINE_EXCEEDED],
    [new HandshakeError("model_hash"), status.FAILED_PRECONDITION],
    [new OutOfDeviceMemoryError("layer 1", 2, 1), status.RESOURCE_EXHAUSTED],
    [new DOMException("stop", "AbortError"), status.CANCELLED],
    [new TypeError("a bug"), status.INTERNAL],
  ] as const) {
    it(`of ${error.name} is ${status[code]}, with its message`, () => {
      assert.deepEqual(grpcStatusOf(error), { code, details: error.message });
    });
  }

  it("of what is no Error is INTERNAL", () => {
    assert.deepEqual(grpcStatusOf("odd"), { code: status.INTERNAL, details: "odd" });
  });
});

describe("a server", () => {
  it("takes a free port and names an address that is taken", async () => {
    const server = new Server(serverOptions);
    const port = await bindServer(server, "127.0.0.1:0");
    assert.ok(port > 0);
    const address = `127.0.0.1:${port}`;
    const other = new Server(serverOptions);
    await assert.rejects(bindServer(other, address), new RegExp(`can not listen on ${address}`));
    await stopServer(server, 1000);
    await stopServer(other, 1000);
  });
});
