/** What a move of experts costs the tokens that are made meanwhile: `npm run bench -- moves`. */

import { setTimeout as delay } from "node:timers/promises";

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { drainShard, shardsOf, waitForConvergence } from "./rig/control-api.ts";
import { ElasticCluster } from "./rig/elastic-cluster.ts";
import { driveLoad, failureText, judgeLoad, runUndisturbed } from "./rig/load-driver.ts";
import { waitFor } from "./rig/wait-for.ts";
import { distribution } from "./load/statistics.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: z.enum(["webgpu", "cpu"]).default("cpu").meta({ description: "What computes" }),
  shards: z.int().min(2).default(2).meta({ description: "Shards at the start", placeholder: "N" }),
  streams: z.int().min(1).default(8).meta({ description: "Requests at a time", placeholder: "N" }),
  outputLen: z.int().min(2).default(48).meta({
    description: "Tokens of each",
    placeholder: "N",
  }),
  seconds: z.number().positive().default(10).meta({
    description: "Rest before each move",
    unit: "s",
    placeholder: "SECONDS",
  }),
  repeats: z.int().min(1).default(3).meta({
    description: "Times that a shard joins and is drained again",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- moves",
  summary:
    "Gaps between tokens at rest and while a shard joins, gets experts, and gives them up again.",
};

/** Longest that a move may take, milliseconds. */
const MOVE_MS = 120_000;

/** Prompts that are sent over and over. */
const PROMPTS = { count: 32, minLength: 16, maxLength: 48 };

/** A stretch of time, and the gaps of the tokens that came in it, milliseconds. */
interface Stretch {
  readonly kind: "rest" | "join" | "drain";
  readonly gaps: number[];
  readonly startedAt: number;
  endedAt: number;
}

/** Runs it and prints a table; the exit status: 1 where a request failed or had a wrong token. */
export async function runMovesCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, device, shards } = settings;
  const cluster = await ElasticCluster.start({
    model,
    device,
    shards,
    redis: true,
    routerFlags: ["--plan-interval", "1"],
  });
  try {
    const [{ url }] = cluster.routers();
    const sizes = { ...PROMPTS, maxTokens: settings.outputLen };
    const { prompts } = await runUndisturbed(url, 41, sizes, settings.streams);
    const stretches: Stretch[] = [];
    const over = new AbortController();
    const load = driveLoad({
      prompts,
      concurrency: settings.streams,
      target: () => url,
      until: over.signal,
      // The first token of a request waited for its prefill, not for the one before.
      onToken: ({ tokens }, gapMs) => tokens.length > 1 && stretches.at(-1)?.gaps.push(gapMs),
    });
    const measure = async (kind: Stretch["kind"], act: () => Promise<unknown>) => {
      const stretch: Stretch = { kind, gaps: [], startedAt: performance.now(), endedAt: 0 };
      stretches.push(stretch);
      await act();
      stretch.endedAt = performance.now();
    };
    const rest = () => measure("rest", () => delay(settings.seconds * 1000));
    for (let repeat = 0; repeat < settings.repeats; repeat++) {
      await rest();
      const { rank } = await cluster.addShard();
      await measure("join", async () => {
        await waitFor("experts on the new shard", () => holdsExperts(url, rank), MOVE_MS);
        await waitForConvergence(cluster, MOVE_MS);
      });
      await rest();
      await measure("drain", () => drainShard(cluster, rank, MOVE_MS));
      await cluster.stopShard(rank);
    }
    over.abort();
    await load.done;
    const { requests, failed, wrong } = judgeLoad(load.requests);
    console.log(table(stretches));
    console.log(`\n${requests} requests, ${failed.length} failed, ${wrong.length} wrong`);
    if (failed.length > 0) console.log(failureText(failed));
    return failed.length + wrong.length === 0 ? 0 : 1;
  } finally {
    await cluster.close();
  }
}

async function holdsExperts(url: string, rank: number): Promise<boolean> {
  const shards = await shardsOf(url);
  return shards.some((shard) => shard.rank === rank && (shard.resident_bytes ?? 0) > 0);
}

/** Gaps at rest and in moves, in Markdown. */
function table(stretches: readonly Stretch[]): string {
  const rows = (["rest", "join", "drain"] as const).map((kind) => {
    const those = stretches.filter((stretch) => stretch.kind === kind);
    const gaps = those.flatMap((stretch) => stretch.gaps);
    const seconds = those.reduce((sum, { startedAt, endedAt }) => sum + endedAt - startedAt, 0);
    return { kind, gaps: distribution(gaps), count: gaps.length, seconds: seconds / 1000 };
  });
  const before = rows[0].gaps.p99;
  const lines = rows.map(({ kind, gaps, count, seconds }) =>
    [
      kind,
      seconds.toFixed(1),
      count,
      gaps.median.toFixed(1),
      gaps.p99.toFixed(1),
      `${(gaps.p99 / before).toFixed(2)} ×`,
    ].join(" | "),
  );
  return [
    "| while | s | tokens | TPOT p50 ms | TPOT p99 ms | p99 against rest |",
    "| --- | --- | --- | --- | --- | --- |",
    ...lines.map((line) => `| ${line} |`),
  ].join("\n");
}
