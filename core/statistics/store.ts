/** The routing statistics of one process: counted off the hot path, flushed to Redis every second. */

import { randomUUID } from "node:crypto";

import type { Log } from "../platform/log.ts";
import { connectRedis, RedisUnavailableError, type RedisConnection } from "../platform/redis.ts";
import { RoutingCounters } from "./counters.ts";
import type { RoutedStep } from "./routed-step.ts";
import {
  bucketOf,
  flushCommands,
  queuedCommands,
  seriesSum,
  type ModelShape,
  type SeriesSum,
} from "./encoding.ts";
import { GrowthLedger } from "./growth.ts";
import type { PairTables } from "./load.ts";
import { listsOfCells, TOP_PARTNERS, type PairCounts, type PairLists } from "./pairs.ts";
import { StepSamples } from "./step-samples.ts";
import type { QueuedTokens } from "./windows.ts";

/** Steps that wait to be counted at most; one more is dropped. */
export const MAX_WAITING_STEPS = 256;

/** Milliseconds between two flushes. */
const FLUSH_INTERVAL_MS = 1_000;

/** Longest wait of `close` for the last flushes, milliseconds. */
const CLOSE_DEADLINE_MS = 2_000;

/**
 * How a flush ended: added; not sent; sent without an answer in time; answered by an error. All but the first are sent
 * again, and count once whatever became of them (encoding.ts says how).
 */
export type FlushOutcome = "ok" | "unavailable" | "unknown" | "refused";

/** Tokens per MoE layer and expert since the previous window, all tasks together [numMoeLayers, numExperts]. */
export interface LoadWindow {
  readonly prefill: Float64Array;
  readonly decode: Float64Array;
}

/** What the statistics of a process are made of. */
export interface StatisticsOptions extends ModelShape {
  /** Absent: the statistics stay in memory. */
  readonly redisUrl?: string;
  readonly modelHash: string;
  readonly log?: Pick<Log, "info" | "warn">;
  readonly flushIntervalMs?: number;
  /** What this process expects to run next; absent: readers take the mix of tasks to be that of late. */
  readonly queued?: () => readonly QueuedTokens[];
  /** Called with the load of each window, Redis or not. */
  readonly onWindow?: (window: LoadWindow) => void;
  readonly onFlush?: (outcome: FlushOutcome) => void;
  /** Called with the tokens of a step that was not counted. */
  readonly onDropped?: (tokens: number) => void;
}

/** Counts since the process started. */
export interface StatisticsSnapshot extends ModelShape {
  readonly series: readonly SeriesSum[];
  readonly steps: number;
  /** Tokens of steps that were not counted: too many waited, or their arrays did not fit the model. */
  readonly droppedTokens: number;
}

/** Statistics that are being counted. */
export interface Statistics {
  /** An engine's observer: takes a step's arrays over and returns at once. */
  readonly observer: { readonly onStep: (step: RoutedStep) => void };
  snapshot(): StatisticsSnapshot;
  /** Tokens since the process started, of all tasks and phases. */
  tokens(): number;
  /** Most frequent partners of every expert. */
  pairs(): PairTables;
  /** Pairs of single decode steps of late, in memory of this process only [numMoeLayers, numExperts] each; none before there are enough. */
  steps(): Float64Array[];
  /** Counts what waits, flushes what it can within two seconds and lets Redis go. */
  close(): Promise<void>;
}

/**
 * Starts counting. Serving never waits for Redis: counters have a fixed size and keep growing while it is away, one
 * encoded flush at most is held until its outcome is known, and what was counted meanwhile follows when it is back, in
 * the bucket of that time.
 */
export function createStatistics(options: StatisticsOptions): Statistics {
  const { modelName, layers, numExperts, topK } = options;
  const shape: ModelShape = { modelName, layers, numExperts, topK };
  const counters = new RoutingCounters(shape);
  const samples = new StepSamples(shape, Math.random);
  const redis =
    options.redisUrl === undefined ? undefined : connectRedis(options.redisUrl, options.log);
  const flusher = redis === undefined ? undefined : new Flusher(redis, counters, shape, options);

  const waiting: RoutedStep[] = [];
  let scheduled = false;
  let droppedTokens = 0;
  const drop = (step: RoutedStep) => {
    droppedTokens += step.numTokens;
    options.onDropped?.(step.numTokens);
  };
  const countNext = () => {
    const step = waiting.shift();
    if (step === undefined) return;
    if (counters.record(step)) samples.offer(step);
    else drop(step);
  };
  // One step at a time: the event loop serves tokens in between.
  const drain = () => {
    countNext();
    scheduled = waiting.length > 0;
    if (scheduled) setImmediate(drain);
  };
  const onStep = (step: RoutedStep) => {
    if (waiting.length >= MAX_WAITING_STEPS) return drop(step);
    waiting.push(step);
    if (!scheduled) setImmediate(drain);
    scheduled = true;
  };

  let before: LoadWindow = { prefill: counters.load("prefill"), decode: counters.load("decode") };
  const reportWindow = () => {
    if (options.onWindow === undefined) return;
    const now = { prefill: counters.load("prefill"), decode: counters.load("decode") };
    options.onWindow({
      prefill: now.prefill.map((tokens, i) => tokens - before.prefill[i]),
      decode: now.decode.map((tokens, i) => tokens - before.decode[i]),
    });
    before = now;
  };

  const timer = setInterval(() => {
    reportWindow();
    void flusher?.flush();
  }, options.flushIntervalMs ?? FLUSH_INTERVAL_MS);
  timer.unref();

  const listsOf = ({ lists, kind, cells }: PairCounts): PairLists =>
    lists ?? listsOfCells(shape, kind, cells, TOP_PARTNERS);

  return {
    observer: { onStep },
    snapshot: () => ({
      ...shape,
      series: counters.series.map(seriesSum),
      steps: counters.steps[0],
      droppedTokens,
    }),
    tokens: () => counters.series.reduce((sum, { cells }) => sum + cells[0], 0),
    pairs: () => ({ together: listsOf(counters.together), next: listsOf(counters.next) }),
    steps: () => samples.loads(),
    close: async () => {
      clearInterval(timer);
      while (waiting.length > 0) countNext();
      reportWindow();
      await flusher?.flushAll(CLOSE_DEADLINE_MS);
      redis?.close();
    },
  };
}

/** Sends growth to Redis, one portion at a time. */
class Flusher {
  readonly #redis: RedisConnection;
  readonly #shape: ModelShape;
  readonly #options: StatisticsOptions;
  readonly #ledger: GrowthLedger;
  readonly #writer = randomUUID();
  #sequence = 0;
  /** The portion whose outcome is not known yet. */
  #unsettled: ReturnType<typeof flushCommands> | undefined;
  #running: Promise<FlushOutcome | undefined> | undefined;
  #refused = false;

  constructor(
    redis: RedisConnection,
    counters: RoutingCounters,
    shape: ModelShape,
    options: StatisticsOptions,
  ) {
    this.#redis = redis;
    this.#shape = shape;
    this.#options = options;
    this.#ledger = new GrowthLedger(counters, options.modelHash);
  }

  /** Sends one portion, or joins the one under way; undefined where there is nothing to send. Never rejects. */
  flush(): Promise<FlushOutcome | undefined> {
    this.#running ??= this.#send().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Sends portions until none is left or the deadline has passed. */
  async flushAll(deadlineMs: number): Promise<void> {
    const deadline = Date.now() + deadlineMs;
    while (Date.now() < deadline) {
      const outcome = await this.flush();
      if (outcome === undefined || outcome === "refused") return;
      const left = deadline - Date.now();
      if (outcome !== "ok" && left > 0) await this.#redis.ready(left).catch(() => undefined);
    }
  }

  async #send(): Promise<FlushOutcome | undefined> {
    this.#unsettled ??= this.#take();
    if (this.#unsettled === undefined) return undefined;
    const outcome = await this.#attempt(this.#unsettled);
    this.#options.onFlush?.(outcome);
    if (outcome !== "ok") return outcome;
    this.#unsettled = undefined;
    this.#refused = false;
    return outcome;
  }

  async #attempt(commands: ReturnType<typeof flushCommands>): Promise<FlushOutcome> {
    if (!this.#redis.isReady()) return "unavailable";
    try {
      const { modelHash, queued } = this.#options;
      const next = queued && queuedCommands(modelHash, this.#writer, Date.now() / 1000, queued());
      await this.#redis.pipeline([...commands, ...(next ?? [])]);
      return "ok";
    } catch (error) {
      if (error instanceof RedisUnavailableError) return "unknown";
      if (!this.#refused) {
        this.#options.log?.warn(
          { redis: this.#redis.address, err: error },
          "Redis refuses the routing statistics",
        );
      }
      this.#refused = true;
      return "refused";
    }
  }

  #take() {
    const { modelHash } = this.#options;
    const now = Math.floor(Date.now() / 1000);
    const growth = this.#ledger.take(bucketOf(now));
    if (growth === undefined) return undefined;
    this.#sequence++;
    return flushCommands({
      modelHash,
      shape: this.#shape,
      writer: this.#writer,
      sequence: this.#sequence,
      now,
      ...growth,
    });
  }
}
