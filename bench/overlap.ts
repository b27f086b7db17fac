/** What two micro-batches bring where the wire has a length: `npm run bench -- overlap`. */

import { execFile } from "node:child_process";
import { promisify } from "node:util";

import { z } from "zod";

import { defaultForeignEnvironment, loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { openDevice } from "../core/gpu/open-device.ts";
import { createLogger } from "../core/platform/log.ts";
import { startService, type ServiceProcess } from "../test/support/service-process.ts";
import { median } from "./hop/cost.ts";
import type { Contender } from "./peers/contender.ts";
import { openSwitchyard } from "./peers/switchyard.ts";

/** Tokens of each prompt. */
const PROMPT_LEN = 4;

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

/** Keeps a process and all its threads on one core. Rejects where `taskset` is missing or the core. */
async function pin(pid: number, core: number): Promise<void> {
  await run("taskset", ["--all-tasks", "--cpu-list", "--pid", `${core}`, `${pid}`]);
}

/** Shards behind a delay proxy each, and the addresses of the proxies. */
async function startShards(settings: z.output<typeof schema>, started: ServiceProcess[]) {
  const { model, device, delay, shards, apart } = settings;
  return Promise.all(
    Array.from({ length: shards }, async (_, rank) => {
      const shard = await startService({
        name: `shard ${rank}`,
        script: "expert-service/main.ts",
        argv: ["--model", model, "--device", device, "--rank", `${rank}`, "--port", "0"],
      });
      started.push(shard);
      if (apart) await pin(shard.pid, 1);
      const proxy = await startService({
        name: "delay proxy",
        script: "bench/overlap/proxy-process.ts",
        argv: [`${shard.ready.port}`, `${delay}`],
      });
      started.push(proxy);
      return `127.0.0.1:${proxy.ready.port}`;
    }),
  );
}

/** Runs the program; returns the exit status. */
export async function runOverlapCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, device, sequences, outputLen, repeats, apart } = settings;
  // A software GPU that computes on one core, here and in the shards.
  if (apart) defaultForeignEnvironment("LP_NUM_THREADS", "1");
  const started: ServiceProcess[] = [];
  const engines: Contender[] = [];
  let gpu: Gpu | undefined;
  try {
    gpu = await openDevice(device, undefined, createLogger("bench", "warn"));
    for (const microBatches of SETTINGS) {
      engines.push(
        await openSwitchyard({
          model,
          gpu,
          weights: "auto",
          shards: await startShards(settings, started),
          microBatches,
          maxStreams: sequences,
          maxStreamTokens: PROMPT_LEN + outputLen,
          maxBatchedTokens: sequences * PROMPT_LEN,
          timeoutMs: 120_000,
        }),
      );
    }
    if (apart) await pin(process.pid, 0);
    const rates = SETTINGS.map((): number[] => []);
    // The first turn is to warm up.
    for (let repeat = 0; repeat <= repeats; repeat++) {
      const prompts = Array.from({ length: sequences }, (_, i) =>
        Array.from({ length: PROMPT_LEN }, (_, j) => (repeat * 131 + i * 17 + j * 5) % 300),
      );
      for (const [i, engine] of engines.entries()) {
        const { decodedTokens, decodeMs } = await engine.generate(prompts, outputLen);
        if (repeat > 0) rates[i].push((decodedTokens / decodeMs) * 1000);
      }
    }
    console.log(overlapTable(settings, rates));
    return 0;
  } finally {
    for (const engine of engines) await engine.close();
    gpu?.close();
    await Promise.all(started.map((service) => service.stop(0)));
  }
}

function overlapTable(
  { shards, delay, sequences, outputLen, repeats, apart }: z.output<typeof schema>,
  rates: readonly (readonly number[])[],
): string {
  const cores = apart ? ", router and shards on cores of their own" : "";
  const base = median(rates[0]);
  return [
    `${sequences} sequences of ${outputLen} tokens, ${shards} shards, ${delay} ms each way, ${repeats} turns${cores}\n`,
    "| --micro-batches | decoded tok/s | median | / one |",
    "|---|---|---|---|",
    ...rates.map((of, i) => {
      const all = of.map((rate) => rate.toFixed(1)).join(", ");
      const cells = [SETTINGS[i], all, median(of).toFixed(1), (median(of) / base).toFixed(2)];
      return `| ${cells.join(" | ")} |`;
    }),
  ].join("\n");
}
