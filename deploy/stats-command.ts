/** `switchyard stats`: what the routing statistics in Redis say. */

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { connectRedis, type RedisConnection } from "../core/platform/redis.ts";
import { redisUrl } from "../core/platform/service-options.ts";
import { PHASES } from "../core/statistics/routed-step.ts";
import { RETENTION_SECONDS } from "../core/statistics/encoding.ts";
import {
  decayedLoad,
  selectSeries,
  sumBuckets,
  type SeriesFilter,
} from "../core/statistics/load.ts";
import { listModels, readBuckets, readPairs } from "../core/statistics/reader.ts";
import { formatModels, formatReport, reportJson } from "../core/statistics/report.ts";
import { isTaskLabel, TASK_LABEL_FORMAT } from "../core/statistics/task-labels.ts";
import { printAnswer } from "./print-answer.ts";

/** Longest wait for Redis, milliseconds. */
const CONNECT_DEADLINE_MS = 2_000;

const schema = z.object({
  redisUrl: redisUrl.default("redis://127.0.0.1:6379").meta({
    ...redisUrl.meta(),
    description: "Redis that the routers write to; `switchyard up` prints its URL",
  }),
  modelHash: z
    .string()
    .regex(/^[0-9a-zA-Z_.-]+$/)
    .optional()
    .meta({
      description:
        "Model to show, or the first characters of its hash; needed where there are several",
      placeholder: "HASH",
      defaultText: "the only one",
      expectation: "the hash of a model, or its first characters",
    }),
  task: z.string().refine(isTaskLabel).optional().meta({
    description: "Only requests with this task label",
    placeholder: "LABEL",
    defaultText: "all",
    expectation: TASK_LABEL_FORMAT,
  }),
  phase: z.enum(PHASES).optional().meta({ description: "Only this phase", defaultText: "both" }),
  window: z.int().min(1).max(RETENTION_SECONDS).default(600).meta({
    description: "How far back to look",
    unit: "s",
    placeholder: "SECONDS",
  }),
  halfLife: z.number().positive().max(RETENTION_SECONDS).optional().meta({
    description: "Load per expert in which a token counts half after every so many seconds",
    unit: "s",
    placeholder: "SECONDS",
    defaultText: "none: every token of the window counts in full",
  }),
  json: z.boolean().default(false).meta({ description: "JSON instead of text" }),
});

type StatsConfig = Readonly<z.output<typeof schema>>;

const about = {
  command: "switchyard stats",
  summary:
    "Shows which experts were chosen: per task, phase and layer, over all routers of a model.",
  notes:
    "Counts are of the last --window seconds, up to ten more, and about a second old.\n" +
    "Imbalance is (max - mean) / mean of the tokens per expert: 0 is even.",
};

/** Runs the command; answers its exit code: 0, or 1 where there is nothing to show, with the reason on stderr. */
export async function runStatsCommand(argv: readonly string[]): Promise<number> {
  const config = loadConfig(schema, about, argv);
  const redis = connectRedis(config.redisUrl);
  try {
    return await printAnswer(about.command, async () => {
      await redis.ready(CONNECT_DEADLINE_MS);
      return report(redis, config, Date.now() / 1000);
    });
  } finally {
    redis.close();
  }
}

async function report(redis: RedisConnection, config: StatsConfig, now: number): Promise<string> {
  const wanted = config.modelHash ?? "";
  const models = (await listModels(redis)).filter(({ modelHash }) => modelHash.startsWith(wanted));
  if (models.length === 0) {
    const what = wanted === "" ? "" : ` of a model ${wanted}`;
    throw new Error(
      `no statistics${what} in Redis at ${redis.address}: no router has flushed any within a day`,
    );
  }
  if (models.length > 1) {
    return config.json ? `${JSON.stringify({ models })}\n` : formatModels(models, now);
  }

  const [{ modelHash }] = models;
  const window = { windowSeconds: config.window, now };
  const { shape, buckets } = await readBuckets(redis, modelHash, window);
  const all = sumBuckets(shape, buckets);
  const filter: SeriesFilter = { task: config.task, phase: config.phase };
  const series = selectSeries(all.series, filter);
  if (series.length === 0) {
    const there = all.series.map(({ task, phase }) => `${task}/${phase}`).join(", ");
    throw new Error(
      `no tokens${config.task === undefined ? "" : ` of task ${config.task}`}${config.phase === undefined ? "" : ` in ${config.phase}`}` +
        ` in the last ${config.window} s; there are ${there === "" ? "none at all" : there}`,
    );
  }
  const subject = {
    modelHash,
    windowSeconds: config.window,
    statistics: {
      ...all,
      series,
      pairs: await readPairs(redis, modelHash, { ...window, shape }),
    },
    ...(config.halfLife !== undefined && {
      decayed: {
        halfLifeSeconds: config.halfLife,
        load: decayedLoad(shape, buckets, config.halfLife, now, filter),
      },
    }),
    width: process.stdout.columns ?? 100,
  };
  return config.json ? `${JSON.stringify(reportJson(subject))}\n` : formatReport(subject);
}
