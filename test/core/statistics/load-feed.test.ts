import assert from "node:assert/strict";
import { after, test } from "node:test";

import {
  connectRedis,
  RedisUnavailableError,
  type RedisConnection,
} from "../../../core/platform/redis.ts";
import { RoutingCounters } from "../../../core/statistics/counters.ts";
import type { RoutedStep } from "../../../core/statistics/routed-step.ts";
import {
  bucketOf,
  flushCommands,
  queuedCommands,
  seriesSum,
} from "../../../core/statistics/encoding.ts";
import { GrowthLedger } from "../../../core/statistics/growth.ts";
import { createLoadFeed, type FeedReading } from "../../../core/statistics/load-feed.ts";
import { NO_PARTNER, TOP_PARTNERS, TURN_TOKENS } from "../../../core/statistics/pairs.ts";
import { createStatistics } from "../../../core/statistics/store.ts";
import type { QueuedTokens } from "../../../core/statistics/windows.ts";
import { startRedis } from "../../../bench/rig/redis.ts";

const SHAPE = { modelName: "tiny", layers: [1, 2], numExperts: 4, topK: 2 };
/** The beginning of the bucket at hand. */
const NOW = Math.floor(Date.now() / 10_000) * 10;

/** Tokens of a task: "a" chooses experts 0 and 1, any other 2 and 3. */
function stepOf(task: string, numTokens: number, shape = SHAPE): RoutedStep {
  const [one, other] = task === "a" ? [0, 1] : [2, 3];
  const ids = Uint32Array.from({ length: numTokens * 2 }, (_, i) => (i % 2 === 0 ? one : other));
  const routing = { ids, weights: new Float32Array(ids.length).fill(0.5), topK: 2 };
  return {
    sequences: [{ task, phase: "decode", numTokens }],
    numTokens,
    routing: new Map(shape.layers.map((layer) => [layer, routing])),
  };
}

/** A router's flushes, at times of the test's choice. */
class Writer {
  readonly counters: RoutingCounters;
  readonly #ledger: GrowthLedger;
  readonly #redis: RedisConnection;
  readonly #hash: string;
  readonly #name: string;
  readonly #shape: typeof SHAPE;
  #sequence = 0;

  constructor(redis: RedisConnection, hash: string, name: string, shape = SHAPE) {
    this.counters = new RoutingCounters(shape);
    this.#ledger = new GrowthLedger(this.counters, hash);
    this.#redis = redis;
    this.#hash = hash;
    this.#name = name;
    this.#shape = shape;
  }

  async flush(now: number, queued: readonly QueuedTokens[] = []): Promise<void> {
    for (let growth; (growth = this.#ledger.take(bucketOf(now))) !== undefined;) {
      const flush = { modelHash: this.#hash, shape: this.#shape, writer: this.#name, now };
      this.#sequence++;
      await this.#redis.pipeline([
        ...flushCommands({ ...flush, sequence: this.#sequence, ...growth }),
        ...queuedCommands(this.#hash, this.#name, now, queued),
      ]);
    }
  }
}

const queue = (task: string, tokens: number): QueuedTokens[] => [{ task, phase: "decode", tokens }];
/** A router that has counted nothing itself. */
const nothing = {
  snapshot: () => ({ ...SHAPE, series: [], steps: 0, droppedTokens: 0 }),
  pairs: () => assert.fail("not asked"),
};

function feedOf(redis: RedisConnection, modelHash: string) {
  return createLoadFeed({ shape: SHAPE, modelHash, redis, statistics: nothing });
}

function facts({ forecast, together, tokens }: FeedReading) {
  const { load, deviation, chosen, tokensPerStep } = forecast;
  return { load, deviation, chosen, tokensPerStep, together, tokens };
}

const server = await startRedis();
const redis = connectRedis(server.url);
await redis.ready(5_000);
after(async () => {
  redis.close();
  await server.close();
});

/** Half an hour of a and b in turns, by as many routers as are named. */
async function serve(hash: string, names: readonly string[], until = NOW): Promise<void> {
  const writers = names.map((name) => new Writer(redis, hash, name));
  for (let at = until - 600; at < until; at += 10) {
    const task = Math.floor(at / 60) % 2 === 0 ? "a" : "b";
    const next = Math.floor((at + 10) / 60) % 2 === 0 ? "a" : "b";
    for (const writer of writers) {
      for (let i = 0; i < 4 / names.length; i++) writer.counters.record(stepOf(task, 30));
      await writer.flush(at, queue(next, 120 / names.length));
    }
  }
}

test("a feed that begins anew, from Redis alone, says what one says that has followed all along", async () => {
  const steady = feedOf(redis, "anew");
  await serve("anew", ["r1"]);
  for (let at = NOW - 590; at < NOW + 20; at += 30) await steady.read(at);
  const now = NOW + 20;
  const followed = facts(await steady.read(now));
  assert.deepEqual(facts(await feedOf(redis, "anew").read(now)), followed);
  assert.equal(followed.tokens, 60 * 120);
  assert.equal(followed.tokensPerStep, 30);
  assert.deepEqual(facts(await steady.read(now)), followed, "a second read counts nothing twice");
});

test("before the first window is complete, steps are as long and as many as this router's own so far", async () => {
  const { counters } = new Writer(redis, "early", "r1");
  const feed = createLoadFeed({
    shape: SHAPE,
    modelHash: "early",
    redis,
    statistics: {
      ...nothing,
      snapshot: () => ({
        ...SHAPE,
        series: counters.series.map(seriesSum),
        steps: counters.steps[0],
        droppedTokens: 0,
      }),
    },
  });
  assert.equal((await feed.read(NOW)).forecast.tokensPerStep, 64);
  for (let i = 0; i < 3; i++) counters.record(stepOf("a", 5));
  const { forecast, tokensPerSecond } = await feed.read(NOW + 2);
  assert.equal(forecast.tokensPerStep, 5);
  assert.equal(tokensPerSecond, 7.5);
  assert.equal(
    forecast.load.reduce((sum, one) => sum + one, 0),
    5 * SHAPE.topK * SHAPE.layers.length,
  );
});

test("what two routers count and expect adds up to what one does", async () => {
  await serve("alone", ["r1"]);
  await serve("both", ["r1", "r2"]);
  const now = NOW + 20;
  assert.deepEqual(
    facts(await feedOf(redis, "both").read(now)),
    facts(await feedOf(redis, "alone").read(now)),
  );
});

test("the task that all routers say is next is what is forecast, and its experts sit in one list", async () => {
  await serve("queued", ["r1"], NOW - 20);
  for (const [task, busy] of [
    ["a", 0],
    ["b", 2],
  ] as const) {
    await redis.pipeline(queuedCommands("queued", "r1", NOW, queue(task, 5000)));
    const { forecast, together } = await feedOf(redis, "queued").read(NOW);
    assert.ok(forecast.load[busy] > 0.9 * 30, `${task}: ${[...forecast.load].join()}`);
    assert.ok(forecast.load[3 - busy] < 0.1 * 30, `${task}: ${[...forecast.load].join()}`);
    assert.deepEqual(
      [...together.partners.subarray(0, 8)],
      [1, NO_PARTNER, NO_PARTNER, NO_PARTNER, 0, NO_PARTNER, NO_PARTNER, NO_PARTNER],
    );
    const { tokens } = together;
    assert.ok(tokens[0] > 10 && tokens[0] + tokens[8] - 30 < 1e-9, `${tokens[0]}`);
  }
});

test("Redis away: a read says so, the next goes on from where the one before was", async (t) => {
  const durable = await startRedis({ durable: true });
  const own = connectRedis(durable.url);
  t.after(async () => {
    own.close();
    await durable.close();
  });
  await own.ready(5_000);
  const writer = new Writer(own, "away", "r1");
  const feed = feedOf(own, "away");
  for (const at of [NOW - 300, NOW - 290]) {
    writer.counters.record(stepOf("a", 50));
    await writer.flush(at);
  }
  assert.equal((await feed.read(NOW - 280)).tokens, 50);
  await durable.kill();
  await assert.rejects(feed.read(NOW - 200), RedisUnavailableError);
  await durable.restart();
  await own.ready(5_000);
  writer.counters.record(stepOf("a", 50));
  await writer.flush(NOW - 250);
  assert.equal((await feed.read(NOW)).tokens, 150);
});

test("without Redis the process's own counts are its windows", async () => {
  const statistics = createStatistics({ ...SHAPE, modelHash: "memory", flushIntervalMs: 1e6 });
  let waiting = queue("a", 1000);
  const feed = createLoadFeed({
    shape: SHAPE,
    modelHash: "memory",
    statistics,
    queued: () => waiting,
  });
  assert.deepEqual([...(await feed.read(NOW)).forecast.chosen], [undefined, undefined]);
  for (let i = 1; i <= 8; i++) {
    const task = i % 4 < 2 ? "a" : "b";
    statistics.observer.onStep(stepOf(task, 100));
    await new Promise(setImmediate);
    await feed.read(NOW + 10 * i);
    waiting = queue((i + 1) % 4 < 2 ? "a" : "b", 1000);
    assert.equal((await feed.read(NOW + 10 * i + 5)).tokens, 100 * i, "a window is ten seconds");
  }
  waiting = queue("b", 1000);
  const { forecast, together } = await feed.read(NOW + 89);
  assert.ok(forecast.load[2] > 90 && forecast.load[0] < 10, [...forecast.load].join());
  assert.equal(together.partners[2 * 4], 3);
  await statistics.close();
});

test("lists of a large model's pairs outlive their routers, add up, and are bounded in number and time", async () => {
  const large = { modelName: "large", layers: [0, 1, 2, 3], numExperts: 512, topK: 2 };
  for (let life = 0; life < 18; life++) {
    const writer = new Writer(redis, "large", `life-${life}`, large);
    // Two layers at a time have cells: the last lives have turns for the pairs of all.
    for (let turn = 0; turn < (life > 15 ? 4 : 1); turn++)
      writer.counters.record(stepOf("a", TURN_TOKENS, large));
    await writer.flush(NOW + life);
  }
  const feed = createLoadFeed({ shape: large, modelHash: "large", redis, statistics: nothing });
  const { together, forecast } = await feed.read(NOW + 60);
  assert.equal(together.topN, TOP_PARTNERS);
  for (const l of [0, 1, 2, 3]) {
    assert.equal(together.partners[l * 512 * TOP_PARTNERS], 1);
    // Every token chooses experts 0 and 1.
    assert.equal(together.tokens[l * 512 * TOP_PARTNERS], forecast.tokensPerStep);
  }
  const [writers, keys] = await redis.pipeline([
    ["ZCARD", "switchyard:v2:{large}:writers"],
    ["KEYS", "switchyard:v2:{large}:*"],
  ]);
  assert.equal(writers, 16);
  const lives = await redis.pipeline((keys as Buffer[]).map((key) => ["TTL", key] as const));
  for (const life of lives) assert.ok((life as number) > 0 && (life as number) <= 86_400);
});
