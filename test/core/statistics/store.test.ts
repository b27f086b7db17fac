import assert from "node:assert/strict";
import { after, test } from "node:test";

import { connectRedis, type RedisConnection } from "../../../core/platform/redis.ts";
import type { RoutedStep } from "../../../core/statistics/routed-step.ts";
import { listModels } from "../../../core/statistics/reader.ts";
import {
  createStatistics,
  MAX_WAITING_STEPS,
  type FlushOutcome,
  type Statistics,
} from "../../../core/statistics/store.ts";
import { NO_PARTNER } from "../../../core/statistics/pairs.ts";
import { readStatistics } from "../../support/read-statistics.ts";
import { startRedis, type TestRedis } from "../../../bench/rig/redis.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { freePort } from "../../../deploy/redis-process.ts";

const SHAPE = { modelName: "tiny", layers: [0, 1], numExperts: 4, topK: 2 };

/** One decode token through experts 0 and 1, then 2 and 3. */
function step(task = "default", numTokens = 1): RoutedStep {
  const layer = (ids: number[]) => ({
    ids: Uint32Array.from({ length: numTokens * 2 }, (_, i) => ids[i % 2]),
    weights: Float32Array.from({ length: numTokens * 2 }, (_, i) => (i % 2 === 0 ? 0.75 : 0.25)),
    topK: 2,
  });
  return {
    sequences: [{ task, phase: "decode", numTokens }],
    numTokens,
    routing: new Map([
      [0, layer([0, 1])],
      [1, layer([2, 3])],
    ]),
  };
}

/** A router's statistics with a record of how its flushes ended. */
function router(redis: TestRedis | undefined, modelHash: string, flushIntervalMs = 20) {
  const outcomes: FlushOutcome[] = [];
  const statistics = createStatistics({
    ...SHAPE,
    modelHash,
    redisUrl: redis?.url,
    flushIntervalMs,
    onFlush: (outcome) => outcomes.push(outcome),
  });
  return { statistics, outcomes };
}

async function reader(redis: TestRedis): Promise<RedisConnection> {
  const connection = connectRedis(redis.url);
  await connection.ready(5_000);
  return connection;
}

async function tokensIn(connection: RedisConnection, modelHash: string): Promise<number> {
  const window = { windowSeconds: 60, now: Date.now() / 1000 };
  const { series } = await readStatistics(connection, modelHash, window).catch(() => ({
    series: [],
  }));
  return series.reduce((sum, one) => sum + one.tokens, 0);
}

function tokensOf(statistics: Statistics): number {
  return statistics.snapshot().series.reduce((sum, one) => sum + one.tokens, 0);
}

const redis = await startRedis();
const connection = await reader(redis);
after(async () => {
  connection.close();
  await redis.close();
});

test("two routers and a restarted one add up, to the millionth", async () => {
  for (let life = 0; life < 3; life++) {
    const pair = [router(redis, "adds-up"), router(redis, "adds-up")];
    for (const { statistics } of pair) {
      statistics.observer.onStep(step("math", 5));
      statistics.observer.onStep(step("code"));
    }
    await Promise.all(pair.map(({ statistics }) => statistics.close()));
  }
  const window = { windowSeconds: 60, now: Date.now() / 1000 };
  const sum = await readStatistics(connection, "adds-up", window);
  assert.deepEqual(
    sum.series.map(({ task, phase, tokens }) => [task, phase, tokens]),
    [
      ["code", "decode", 6],
      ["math", "decode", 30],
    ],
  );
  assert.deepEqual([...sum.series[1].expertTokens], [30, 30, 0, 0, 0, 0, 30, 30]);
  assert.deepEqual([...sum.series[1].weightSums], [22.5, 7.5, 0, 0, 0, 0, 22.5, 7.5]);
  const { together, next } = sum.pairs;
  assert.deepEqual(
    [...next.partners.subarray(0, 8)],
    [2, 3, NO_PARTNER, NO_PARTNER, 2, 3, NO_PARTNER, NO_PARTNER],
  );
  assert.deepEqual([...next.counts.subarray(0, 8)], [36, 36, 0, 0, 36, 36, 0, 0]);
  assert.deepEqual([together.partners[0], together.counts[0], ...together.sums], [1, 36, 36, 36]);
  const listed = (await listModels(connection)).find((model) => model.modelHash === "adds-up");
  assert.deepEqual(listed?.shape, SHAPE);
});

test("every key of a flush expires", async () => {
  const { statistics } = router(redis, "expires");
  statistics.observer.onStep(step());
  await statistics.close();
  const [keys] = await connection.pipeline([["KEYS", "*{expires}*"]]);
  assert.equal((keys as Buffer[]).length, 7);
  const lives = await connection.pipeline((keys as Buffer[]).map((key) => ["TTL", key] as const));
  for (const life of lives) assert.ok((life as number) > 0 && (life as number) <= 86_400);
});

test("each window's load is reported, without Redis too", async () => {
  const windows: number[][] = [];
  const statistics = createStatistics({
    ...SHAPE,
    modelHash: "memory",
    flushIntervalMs: 5,
    onWindow: ({ decode }) => windows.push([...decode]),
  });
  statistics.observer.onStep(step("default", 3));
  await waitFor("a window with load", () => windows.some((load) => load[0] === 3));
  await waitFor("an empty window after it", () => windows.at(-1)?.[0] === 0);
  await statistics.close();
  assert.equal(tokensOf(statistics), 3);
  assert.deepEqual(statistics.snapshot().series[0].weightSums[0], 2.25);
});

test("what waits beyond the bound is dropped and counted", async () => {
  const { statistics } = router(undefined, "memory");
  for (let i = 0; i < MAX_WAITING_STEPS + 10; i++) statistics.observer.onStep(step("default", 2));
  await waitFor("counted", () => tokensOf(statistics) === MAX_WAITING_STEPS * 2);
  assert.equal(statistics.snapshot().droppedTokens, 20);
  statistics.observer.onStep(step());
  await waitFor("counted again", () => tokensOf(statistics) === MAX_WAITING_STEPS * 2 + 1);
  await statistics.close();
});

test("Redis killed and restarted in mid-way: nothing is lost, nothing counts twice", async () => {
  const durable = await startRedis({ durable: true });
  const { statistics, outcomes } = router(durable, "killed");
  let tokens = 0;
  const work = setInterval(() => {
    statistics.observer.onStep(step());
    tokens++;
  }, 1);
  try {
    await waitFor("flushed", () => outcomes.includes("ok"));
    await durable.kill();
    await waitFor("noticed", () => outcomes.includes("unavailable"));
    const held = process.memoryUsage().arrayBuffers;
    const flushed = outcomes.length;
    await waitFor("20 more attempts", () => outcomes.length > flushed + 20);
    assert.ok(process.memoryUsage().arrayBuffers - held < 1024 * 1024);
    await durable.restart();
    const resumedAt = outcomes.length;
    await waitFor("resumed", () => outcomes.slice(resumedAt).includes("ok"));
  } finally {
    clearInterval(work);
    await statistics.close();
  }
  const again = await reader(durable);
  assert.equal(tokensOf(statistics), tokens);
  assert.equal(await tokensIn(again, "killed"), tokens);
  again.close();
  await durable.close();
});

test("a frozen Redis: serving does not notice, a flush without an answer counts once", async () => {
  const frozen = await startRedis();
  const { statistics, outcomes } = router(frozen, "frozen");
  let tokens = 0;
  let longest = 0;
  const work = setInterval(() => {
    const startedAt = performance.now();
    statistics.observer.onStep(step());
    longest = Math.max(longest, performance.now() - startedAt);
    tokens++;
  }, 1);
  try {
    await waitFor("flushed", () => outcomes.includes("ok"));
    frozen.freeze();
    await waitFor("a flush without an answer", () => outcomes.includes("unknown"));
    await waitFor("refused at once", () => outcomes.includes("unavailable"));
    frozen.thaw();
    const thawedAt = outcomes.length;
    await waitFor("resumed", () => outcomes.slice(thawedAt).includes("ok"));
  } finally {
    clearInterval(work);
    await statistics.close();
  }
  assert.ok(longest < 50, `onStep took ${longest} ms`);
  const again = await reader(frozen);
  assert.equal(await tokensIn(again, "frozen"), tokens);
  again.close();
  await frozen.close();
});

test("without a Redis at the address, closing ends within its deadline", async () => {
  const statistics = createStatistics({
    ...SHAPE,
    modelHash: "nobody",
    redisUrl: `redis://127.0.0.1:${await freePort()}`,
  });
  statistics.observer.onStep(step());
  const startedAt = performance.now();
  await statistics.close();
  assert.ok(performance.now() - startedAt < 4_000);
  assert.equal(tokensOf(statistics), 1);
});
