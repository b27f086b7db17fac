/** What moves of experts cost the tokens that are made meanwhile: `npm run bench -- moves`. */

import { setTimeout as delay } from "node:timers/promises";

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { metric } from "./rig/api.ts";
import {
  drainShard,
  newCopies,
  placementOf,
  shardsOf,
  waitForConvergence,
} from "./rig/control-api.ts";
import { ElasticCluster } from "./rig/elastic-cluster.ts";
import {
  type DrivenRequest,
  driveLoad,
  failureText,
  judgeLoad,
  runUndisturbed,
} from "./rig/load-driver.ts";
import { waitFor } from "./rig/wait-for.ts";
import { distribution } from "./load/statistics.ts";
import { MoveLog } from "./moves/move-log.ts";
import {
  type Gap,
  gapsAtRest,
  gapsInMoves,
  movesOf,
  type Span,
  type Stretch,
} from "./moves/spans.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: z.enum(["webgpu", "cpu"]).default("cpu").meta({ description: "What computes" }),
  shards: z.int().min(2).default(2).meta({ description: "Shards at the start", placeholder: "N" }),
  streams: z.int().min(1).default(8).meta({ description: "Requests at a time", placeholder: "N" }),
  outputLen: z.int().min(4).default(96).meta({
    description: "Tokens of the longest answer; the others have half of that and more",
    placeholder: "N",
  }),
  microsPerPair: z.number().min(0).default(500).meta({
    description:
      "Time that a shard's device takes at least for one expert of a row, no core meanwhile",
    unit: "µs",
    placeholder: "N",
  }),
  diskMbps: z.number().positive().optional().meta({
    description: "MB/s that the disk of each shard gives at most, so that experts come from peers",
    placeholder: "N",
    defaultText: "as fast as it is",
  }),
  seconds: z.number().positive().default(10).meta({
    description: "Rest before each move",
    unit: "s",
    placeholder: "SECONDS",
  }),
  repeats: z.int().min(1).default(3).meta({
    description: "Times that a shard joins and the oldest is drained",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- moves",
  summary:
    "Gaps between tokens at rest, while a shard joins and gets experts, and while the oldest leaves and all of its experts move.",
};

/** Longest that a move may take, milliseconds. */
const MOVE_MS = 120_000;

/** Time between two looks whether a new shard has experts: a router that is asked all the time has less time for steps. */
const LOOK_MS = 100;

/** Lengths of the prompts that are sent over and over. */
const PROMPT_LENGTHS = { minLength: 16, maxLength: 48 };

/** A stretch of time, milliseconds of performance.now, and what was done in it. */
interface MeasuredStretch extends Stretch {
  /** Copies of experts that the placement has more at the end, and bytes that shards read from disk. */
  readonly loaded: number;
  readonly read: number;
  /** Dispatches that were sent to another copy or once more. */
  readonly sentAgain: number;
}

/** Runs it and prints a table; the exit status: 1 where a request failed or had a wrong token. */
export async function runMovesCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, device, shards, diskMbps } = settings;
  const log = new MoveLog();
  const cluster = await ElasticCluster.start({
    model,
    device,
    shards,
    redis: true,
    shardScript: "bench/throttled-shard.ts",
    shardFlags: () => [
      `--micros-per-pair=${settings.microsPerPair}`,
      ...(diskMbps === undefined ? [] : [`--disk-bytes-per-second=${diskMbps * 1e6}`]),
    ],
    routerFlags: ["--plan-interval", "1"],
    onLine: (name, line) => log.hear(name, line),
  });
  try {
    const [{ url }] = cluster.routers();
    const count = 2 * settings.streams;
    const sizes = { ...PROMPT_LENGTHS, count, maxTokens: settings.outputLen };
    const { prompts } = await runUndisturbed(url, 41, sizes, settings.streams);
    const stretches: MeasuredStretch[] = [];
    const gaps: Gap[] = [];
    const over = new AbortController();
    const prefills = new PrefillWatch();
    const load = driveLoad({
      prompts: prompts.map(({ ids, greedy }, index) => ({
        ids,
        // Of many lengths, so that answers do not end, and prompts begin, all at once.
        greedy: greedy.slice(0, Math.ceil((greedy.length * (1 + index / count)) / 2)),
      })),
      concurrency: settings.streams,
      target: () => url,
      until: over.signal,
      onToken: (request, gapMs) => {
        const isDecode = prefills.isDecode(load.requests, request, gapMs);
        // The first token of a request waited for its prefill, not for the one before.
        if (request.tokens.length === 1) return;
        const to = performance.now();
        gaps.push({ from: to - gapMs, to, isDecode });
      },
    });
    const measure = async (kind: Stretch["kind"], act: () => Promise<unknown>) => {
      const placement = await placementOf(url);
      const reads = diskReads(cluster, log);
      const again = await sentAgain(url);
      const from = performance.now();
      await act();
      const to = performance.now();
      let read = 0;
      for (const [rank, bytes] of diskReads(cluster, log)) read += bytes - (reads.get(rank) ?? 0);
      stretches.push({
        kind,
        from,
        to,
        loaded: newCopies(placement, await placementOf(url)),
        read,
        sentAgain: (await sentAgain(url)) - again,
      });
    };
    const rest = () => measure("rest", () => delay(settings.seconds * 1000));
    for (let repeat = 0; repeat < settings.repeats; repeat++) {
      await rest();
      const { rank } = await cluster.addShard();
      await measure("join", async () => {
        await waitFor("experts on the new shard", () => holdsExperts(url, rank), MOVE_MS, LOOK_MS);
        await waitForConvergence(cluster, MOVE_MS);
      });
      await rest();
      const [oldest] = cluster.shards();
      await measure("drain", () => drainShard(cluster, oldest.rank, MOVE_MS));
      await cluster.stopShard(oldest.rank);
    }
    over.abort();
    await load.done;
    const { requests, failed, wrong } = judgeLoad(load.requests);
    const adoptions = log.adoptions(performance.timeOrigin);
    console.log(table(stretches, gaps, adoptions));
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

/** Tells gaps of decode steps alone from those in which some prompt was computed. */
class PrefillWatch {
  #lastEndedAt = 0;

  /** To be called with every token of every request, `gapMs` after the one before. */
  isDecode(requests: readonly DrivenRequest[], { tokens }: DrivenRequest, gapMs: number): boolean {
    const now = performance.now();
    if (tokens.length === 1) this.#lastEndedAt = now;
    const waits = requests
      .slice(-64)
      .some((one) => one.endedAt === undefined && one.tokens.length === 0);
    return !waits && this.#lastEndedAt < now - gapMs;
  }
}

/** Bytes that each living shard has read from its checkpoint since it came up, from what it logged. */
function diskReads(cluster: ElasticCluster, log: MoveLog): Map<number, number> {
  return new Map(
    cluster.shards().map(({ rank, process }) => [rank, log.bytesRead(process.name)] as const),
  );
}

/** Dispatches that a router has sent to another copy as well, or again, so far. */
async function sentAgain(url: string): Promise<number> {
  return (await metric(url, "moe_hedges_total")) + (await metric(url, "moe_resends_total"));
}

/** Gaps at rest and in moves, in Markdown. */
function table(
  stretches: readonly MeasuredStretch[],
  gaps: readonly Gap[],
  adoptions: readonly Span[],
): string {
  const rows = (["rest", "join", "drain"] as const).map((kind) => {
    const those = stretches.filter((stretch) => stretch.kind === kind);
    const moves = those.flatMap((stretch) => movesOf(stretch, adoptions));
    const isRest = kind === "rest";
    const own = isRest ? gapsAtRest(gaps, those, adoptions) : gapsInMoves(gaps, moves);
    const lengths = (some: readonly Gap[]) => some.map(({ from, to }) => to - from);
    const sum = (of: (stretch: MeasuredStretch) => number) =>
      those.reduce((total, stretch) => total + of(stretch), 0);
    return {
      kind,
      seconds:
        (isRest ? those : moves).reduce((total, { from, to }) => total + to - from, 0) / 1000,
      loaded: sum(({ loaded }) => loaded),
      read: sum(({ read }) => read),
      again: sum(({ sentAgain }) => sentAgain),
      gaps: [lengths(own.filter(({ isDecode }) => isDecode)), lengths(own)],
    };
  });
  const before = rows[0].gaps.map((gaps) => distribution(gaps).p99);
  const lines = rows.map(({ kind, seconds, loaded, read, again, gaps }) =>
    [
      kind,
      seconds.toFixed(1),
      loaded,
      (read / 2 ** 20).toFixed(1),
      again,
      ...gaps.flatMap((values, which) => {
        const { p50, p99 } = distribution(values);
        const against = `${(p99 / before[which]).toFixed(2)} ×`;
        const longest = values.reduce((most, value) => Math.max(most, value), 0);
        return [values.length, p50.toFixed(1), p99.toFixed(1), against, longest.toFixed(1)];
      }),
    ].join(" | "),
  );
  const of = ["gaps", "p50 ms", "p99 ms", "p99 against rest", "longest ms"].join(" | ");
  return [
    `| while | s | experts loaded | MiB from disk | sent again | decode steps: ${of} | with prompts: ${of} |`,
    `|${" --- |".repeat(15)}`,
    ...lines.map((line) => `| ${line} |`),
  ].join("\n");
}
