import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { Client, credentials, status } from "@grpc/grpc-js";

import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import type { Cluster } from "../../../router-service/cluster/cluster.ts";
import { DEMO_MODEL, TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";
import { hostStep, testRouting } from "../../support/run-experts-contract.ts";
import { startService, type ServiceProcess } from "../../../bench/rig/service-process.ts";
import {
  helloFor,
  openShardConnection,
  placedConnection,
  placementOf,
} from "../../../bench/rig/shard-connection.ts";
import { connectTestCluster } from "../../support/shards.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const startShard = (rank: number, port = 0, flags: readonly string[] = []) =>
  startService({
    name: `shard ${rank}`,
    script: "expert-service/main.ts",
    argv: [
      "--device=cpu",
      `--model=${TINY_MODEL}`,
      `--rank=${rank}`,
      `--port=${port}`,
      // Routers of these tests do not move what a leaving shard holds.
      "--drain-timeout=0",
      ...flags,
    ],
  });
const addressOf = (shard: ServiceProcess) => `127.0.0.1:${shard.ready.port}`;

describe("two shard processes", () => {
  let shards: ServiceProcess[];
  let cluster: Cluster;
  let expected: unknown;
  /** Ranks of the dispatches that were answered. */
  const answered: number[] = [];
  const routing = testRouting(5, 4, (token, k) => (token + k * 3) % 12);
  const run = () => {
    const step = hostStep(testValues(5 * 64, 1), routing, new AbortController().signal);
    return Promise.resolve(cluster.runExperts(1, step.hiddenStates, step.routing));
  };
  before(async () => {
    shards = await Promise.all([startShard(0), startShard(1)]);
    cluster = await connectTestCluster(shards.map(addressOf), {
      onDispatch: ({ rank, outcome }) => {
        if (outcome === "ok") answered.push(rank);
      },
    });
    await cluster.ready();
    expected = await run();
  });
  after(async () => {
    await cluster?.close();
    await Promise.all((shards ?? []).map((shard) => shard.stop()));
  });

  it("killed outright with dispatches pending: their rows are computed after its restart, others' are kept", async () => {
    answered.length = 0;
    // Stopped first, so that the dispatches are pending for certain.
    shards[1].kill("SIGSTOP");
    const pending = [run(), run(), run()];
    await waitFor("the other shard's answers", () => answered.length === 3);
    shards[1].kill("SIGKILL");
    await waitFor("the loss", () => cluster.missingReason() !== undefined);
    assert.match(cluster.missingReason() ?? "", new RegExp(addressOf(shards[1])));
    shards[1] = await startShard(1, shards[1].ready.port);
    for (const sums of await Promise.all(pending)) assert.deepEqual(sums, expected);
    assert.deepEqual(
      answered.sort((a, b) => a - b),
      [0, 0, 0, 1, 1, 1],
    );
  });

  it("frozen for a while: it counts as lost until it wakes, then its rows are computed", async () => {
    shards[0].kill("SIGSTOP");
    const running = run();
    await waitFor("the loss", () => cluster.missingReason() !== undefined);
    shards[0].kill("SIGCONT");
    assert.deepEqual(await running, expected);
  });

  it("asked to stop ends with exit code 0 at once, its routers told", async () => {
    const startedAt = performance.now();
    assert.deepEqual(await shards[0].stop(), { code: 0, signal: null });
    assert.ok(performance.now() - startedAt < 3000);
    await waitFor("the loss", () =>
      /the shard is stopping|ECONNREFUSED/.test(cluster.missingReason() ?? ""),
    );
    shards[0] = await startShard(0, shards[0].ready.port);
    await cluster.ready();
    assert.deepEqual(await run(), expected);
  });

  it("answers a health probe", async () => {
    const client = new Client(addressOf(shards[0]), credentials.createInsecure());
    const answer = await new Promise<Buffer | undefined>((resolve, reject) => {
      client.makeUnaryRequest(
        "/grpc.health.v1.Health/Check",
        () => Buffer.alloc(0),
        (bytes) => bytes,
        {},
        (error, value) => (error ? reject(error) : resolve(value)),
      );
    });
    client.close();
    // HealthCheckResponse {status: SERVING}
    assert.deepEqual([...(answer ?? [])], [8, 1]);
  });
});

describe("a shard process that can not serve", () => {
  it("ends with an error where its checkpoint is missing", async () => {
    await assert.rejects(startShard(0, 0, ["--model=test/goldens"]), /config\.json/);
  });

  it("refuses a placement that its memory does not hold, with the bytes, and stays", async (t) => {
    const shard = await startShard(0, 0, ["--memory-limit=600000"]);
    t.after(() => shard.stop());
    // A router would count and not place them.
    const checkpoint = await openCheckpoint(TINY_MODEL);
    t.after(() => checkpoint.close());
    const connection = openShardConnection(addressOf(shard));
    connection.send({ $case: "hello", value: helloFor(checkpoint) });
    await connection.next("hello");
    const all = Array.from({ length: checkpoint.config.numExperts }, (_, id) => id);
    connection.send({ $case: "placement", value: placementOf(checkpoint, all) });
    const { code, details } = await connection.ended;
    assert.equal(code, status.RESOURCE_EXHAUSTED);
    assert.match(details, /needs 1105920 bytes of device memory, at most 600000/);
    (await placedConnection(addressOf(shard), checkpoint, [0])).close();
  });

  it("of another checkpoint is refused by the model's hash", async (t) => {
    const shard = await startShard(0, 0, [`--model=${DEMO_MODEL}`]);
    t.after(() => shard.stop());
    const cluster = await connectTestCluster([addressOf(shard)]);
    t.after(() => cluster.close());
    await waitFor("the refusal", () => /model_hash/.test(cluster.unavailableReason() ?? ""));
  });
});
