/** What two micro-batches bring where the wire has a length: `npm run bench -- overlap`. */

import { execFile } from "node:child_process";
import { promisify } from "node:util";

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { startCluster, type Cluster } from "../test/support/cluster.ts";
import { startService, type ServiceProcess } from "../test/support/service-process.ts";
import { median } from "./hop/cost.ts";
import { generateLoad } from "./load/generate.ts";
import { loadSchema } from "./load/options.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: serviceOptions.device,
  shards: z.int().min(1).default(2).meta({ description: "Shards", placeholder: "N" }),
  delay: z.number().min(0).default(2).meta({
    description: "Time that every byte between router and shards takes, each way",
    unit: "ms",
    placeholder: "MS",
  }),
  sequences: z.int().min(2).default(64).meta({
    description: "Sequences that decode together",
    placeholder: "N",
  }),
  outputLen: z.int().min(2).default(48).meta({
    description: "Tokens of each",
    placeholder: "N",
  }),
  apart: z.boolean().default(false).meta({
    description:
      "Router on the first core and shards on the second, one driver thread each: two devices instead of one that they share",
  }),
  repeats: z.int().min(1).default(5).meta({
    description: "Times that the clusters take turns",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- overlap",
  summary:
    "Throughput with one micro-batch and with two, router and shards some milliseconds apart.",
};

/** Settings that are compared; the first is the base of the ratio. */
const SETTINGS = ["1", "2", "auto"] as const;

const run = promisify(execFile);

/** Environment under which a software GPU computes on one core. */
const ONE_THREAD = { LP_NUM_THREADS: "1" };

/** Keeps a process and all its threads on one core. Rejects where `taskset` is missing or the core. */
async function pin({ pid }: ServiceProcess, core: number): Promise<void> {
  await run("taskset", ["--all-tasks", "--cpu-list", "--pid", `${core}`, `${pid}`]);
}

/** Output tokens per second of every sequence at once. */
async function throughput(
  { url }: Cluster,
  settings: z.output<typeof schema>,
  seed: number,
): Promise<number> {
  const options = loadSchema.parse({
    url,
    model: settings.model,
    dataset: "random",
    seed,
    inputLen: 4,
    outputLen: settings.outputLen,
    numPrompts: settings.sequences,
    maxConcurrency: settings.sequences,
    numWarmups: 0,
    ignoreEos: true,
  });
  const { summary } = await generateLoad(options);
  if (summary.failed > 0) throw new Error(`requests failed: ${JSON.stringify(summary.failures)}`);
  return summary.outputThroughput;
}

/** Runs the program; returns the exit status. */
export async function runOverlapCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, device, shards, delay, sequences, repeats } = settings;
  const proxies: ServiceProcess[] = [];
  const clusters: Cluster[] = [];
  try {
    for (const microBatches of SETTINGS) {
      const cluster = await startCluster({
        model,
        device,
        shards,
        weights: "auto",
        wire: "f16",
        env: settings.apart ? ONE_THREAD : {},
        routerFlags: ["--micro-batches", microBatches, "--max-num-seqs", `${sequences}`],
        portOfShard: async (port) => {
          const proxy = await startService({
            name: "delay proxy",
            script: "bench/overlap/proxy-process.ts",
            argv: [`${port}`, `${delay}`],
          });
          proxies.push(proxy);
          return proxy.ready.port ?? 0;
        },
      });
      clusters.push(cluster);
      if (settings.apart) {
        await pin(cluster.router, 0);
        await Promise.all(cluster.shards.map((shard) => pin(shard, 1)));
      }
    }
    const measured = SETTINGS.map((): number[] => []);
    // The first turn is to warm up.
    for (let repeat = 0; repeat <= repeats; repeat++) {
      for (const [i, cluster] of clusters.entries()) {
        const rate = await throughput(cluster, settings, repeat);
        if (repeat > 0) measured[i].push(rate);
      }
    }
    console.log(
      `${sequences} sequences of ${settings.outputLen} tokens, ${shards} shards, ${delay} ms each way, ${repeats} turns${settings.apart ? ", router and shards on cores of their own" : ""}\n`,
    );
    console.log("| --micro-batches | output tok/s | median | / one |\n|---|---|---|---|");
    const base = median(measured[0]);
    for (const [i, rates] of measured.entries()) {
      const all = rates.map((rate) => rate.toFixed(1)).join(", ");
      const middle = median(rates);
      const cells = [SETTINGS[i], all, middle.toFixed(1), (middle / base).toFixed(2)];
      console.log(`| ${cells.join(" | ")} |`);
    }
    return 0;
  } finally {
    await Promise.all(clusters.map((cluster) => cluster.close()));
    await Promise.all(proxies.map((proxy) => proxy.stop(0)));
  }
}
