/** `npm run bench`: serve figures, the cost of a hop and held-out perplexity for 0, 1 and 2 shards; or one of them by name. */

import { z } from "zod";

import { errorMessage } from "../core/error-message.ts";
import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { runForecastCommand } from "./forecast.ts";
import { runFormatsCommand } from "./formats.ts";
import { measureHop, runHopCommand } from "./hop-cost.ts";
import { runLiveLoadingCommand } from "./live-loading.ts";
import { generateLoad } from "./load/generate.ts";
import { loadSchema } from "./load/options.ts";
import { failureLines, summaryTable } from "./load/result.ts";
import type { LoadSummary } from "./load/statistics.ts";
import { runLoadTimeCommand } from "./load-time.ts";
import { withClusters, type MeasuredCluster } from "./measured-clusters.ts";
import { runOverlapCommand } from "./overlap.ts";
import { runPeersCommand } from "./peers/command.ts";
import { runMovesCommand } from "./moves.ts";
import { measurePerplexity, perplexityTable, runPerplexityCommand } from "./perplexity.ts";
import { runPlacementCommand } from "./placement.ts";
import { runBenchCommand } from "./serve.ts";
import { runSkewedCommand } from "./skewed.ts";
import { runSyntheticCommand } from "./synthetic/command.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: serviceOptions.device,
  repeats: z.int().min(1).default(5).meta({
    description: "Times that the clusters take turns when the hop is measured",
    placeholder: "N",
  }),
  windows: z.int().min(1).optional().meta({
    description: "Held-out windows of each domain",
    placeholder: "N",
    defaultText: "all",
  }),
});

const about = {
  command: "npm run bench --",
  summary:
    "Starts clusters of 0, 1 and 2 shards on this machine and prints their figures as Markdown.",
  notes:
    "One part alone: hop, overlap, moves, skewed, placement, forecast, formats, load-time, live-loading, peers; of a\n" +
    "running server: serve --url URL (load), perplexity --url URL; synthetic --config NAME --out DIR writes a model.\n" +
    "Each has its own --help.",
};

/** Loads of the serve figures: one stream, eight at once, and arrivals that do not wait. */
const LOADS = [
  { name: "1 stream", maxConcurrency: 1, numPrompts: 6 },
  { name: "8 streams", maxConcurrency: 8, numPrompts: 32 },
  { name: "Poisson, 1 request/s", requestRate: 1, numPrompts: 32 },
] as const;

async function serveFigures(clusters: readonly MeasuredCluster[], model: string): Promise<string> {
  const rows: (readonly [string, LoadSummary])[] = [];
  const failures: string[] = [];
  for (const [seed, { name, ...load }] of LOADS.entries())
    for (const { shards, cluster } of clusters) {
      const options = loadSchema.parse({
        ...load,
        // Prompts of an earlier load would be found in the prefix cache.
        seed,
        url: cluster.url,
        model,
        dataset: "demo-texts",
        inputLen: 128,
        outputLen: 64,
        ignoreEos: true,
        goodput: ["ttft:1000", "tpot:100"],
      });
      const { summary } = await generateLoad(options);
      rows.push([`${name}, ${shards} shards`, summary]);
      failures.push(...failureLines(summary));
    }
  return [summaryTable(rows), ...failures].join("\n");
}

async function runAll(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, windows } = settings;
  await withClusters(settings, async (clusters) => {
    console.log(`## Serve: 128 tokens in, 64 out, goodput ttft 1000 ms, tpot 100 ms\n`);
    console.log(`${await serveFigures(clusters, model)}\n`);
    console.log(`## The cost of a hop\n`);
    console.log(`${await measureHop(clusters, { ...settings, outputLen: 64 })}\n`);
    const { shards, cluster } = clusters[clusters.length - 1];
    console.log(`## Held-out perplexity, ${shards} shards\n`);
    console.log(`${perplexityTable(await measurePerplexity(cluster.url, model, windows))}\n`);
  });
  return 0;
}

/** Programs by their names, each with its flags; without a name it is the serve figures, the hop and perplexity. */
const PROGRAMS: Readonly<Record<string, (argv: string[]) => number | Promise<number>>> = {
  serve: runBenchCommand,
  hop: runHopCommand,
  moves: runMovesCommand,
  skewed: runSkewedCommand,
  overlap: runOverlapCommand,
  "live-loading": runLiveLoadingCommand,
  "load-time": runLoadTimeCommand,
  forecast: runForecastCommand,
  formats: runFormatsCommand,
  perplexity: runPerplexityCommand,
  peers: runPeersCommand,
  placement: runPlacementCommand,
  synthetic: runSyntheticCommand,
};

const argv = process.argv.slice(2);
const name = argv.find((argument, at) => at === 0 && !argument.startsWith("-"));
try {
  if (name !== undefined && !Object.hasOwn(PROGRAMS, name)) {
    throw new Error(`no such program; there are ${Object.keys(PROGRAMS).join(", ")}`);
  }
  process.exitCode = await (name === undefined ? runAll(argv) : PROGRAMS[name](argv.slice(1)));
} catch (error) {
  console.error(`${[about.command, name].filter(Boolean).join(" ")}: ${errorMessage(error)}`);
  // Not by exitCode: what failed may have left something open.
  process.exit(1);
}
