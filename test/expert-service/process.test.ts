import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { readMembers } from "../../core/membership.ts";
import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { connectRedis, type RedisConnection } from "../../core/platform/redis.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { later, place } from "../support/placed-shard.ts";
import { startRedis, type TestRedis } from "../../bench/rig/redis.ts";
import { startService, type Exit } from "../../bench/rig/service-process.ts";
import { placedConnection } from "../../bench/rig/shard-connection.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

describe("a shard process", () => {
  let server: TestRedis;
  let redis: RedisConnection;
  let checkpoint: Checkpoint;
  before(async () => {
    server = await startRedis();
    redis = connectRedis(server.url);
    checkpoint = await openCheckpoint(TINY_MODEL);
  });
  after(async () => {
    redis.close();
    await checkpoint.close();
    await server.close();
  });

  const start = (...flags: string[]) =>
    startService({
      name: "shard",
      script: "expert-service/main.ts",
      argv: ["--device=cpu", `--model=${TINY_MODEL}`, "--port=0", ...flags],
    });
  const registered = async () => (await readMembers(redis, checkpoint.modelHash)).shards;

  it("registers itself, and at SIGTERM leaves when nothing is placed on it any more", async () => {
    const advertised = "shard-3.example:50061";
    const flags = ["--rank=3", `--redis-url=${server.url}`, `--advertise=${advertised}`];
    const shard = await start(...flags, "--memory-limit=1000000");
    const first = await waitFor("the registration", async () => (await registered())[0]);
    const { pairsPerSecond, incarnation, ...rest } = first;
    assert.deepEqual(rest, {
      kind: "shard",
      rank: 3,
      address: advertised,
      adapter: "cpu",
      memoryBytes: 1_000_000,
      residentBytes: 0,
      tolerance: 0,
      weights: "auto",
      experts: "auto",
      draining: false,
      released: false,
      residentExperts: 0,
      epoch: 0,
    });
    assert.ok(pairsPerSecond > 0);
    assert.match(incarnation, /^[0-9a-f-]{36}$/);

    const address = `127.0.0.1:${shard.ready.port}`;
    const connection = await placedConnection(address, checkpoint, [1, 2]);
    await waitFor("its experts", async () => (await registered())[0]?.residentExperts === 6);
    shard.kill("SIGTERM");
    await waitFor("the word", () => connection.status()?.draining);
    await waitFor("the word in Redis", async () => (await registered())[0]?.draining);
    await place(connection, later(checkpoint, 2, [], 2));
    assert.deepEqual(await shard.exited, { code: 0, signal: null });
    assert.deepEqual(await registered(), []);
    assert.match(shard.output(), /nothing is placed on it/);
  });

  it("ends at once at a second signal, and at the first where no router is connected", async () => {
    const [held, idle] = await Promise.all([start("--rank=1"), start("--rank=2")]);
    const connection = await placedConnection(`127.0.0.1:${held.ready.port}`, checkpoint, [1]);
    let exit: Exit | undefined;
    void held.exited.then((how) => (exit = how));
    held.kill("SIGTERM");
    await waitFor("the word", () => connection.status()?.draining);
    // A terminal's signal that comes twice is one wish; one that comes later is another.
    await waitFor("the exit", () => held.kill("SIGTERM") ?? exit);
    assert.deepEqual(exit, { code: 143, signal: null });
    const startedAt = performance.now();
    assert.deepEqual(await idle.stop(), { code: 0, signal: null });
    assert.ok(performance.now() - startedAt < 3000);
  });
});
