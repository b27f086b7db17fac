/** What two micro-batches bring where the wire has a length: `npm run bench -- overlap`. */

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";

import { z } from "zod";

import { moeLayers } from "../core/model/config.ts";
import { readModelConfig } from "../core/model/load-config.ts";
import { defaultForeignEnvironment, loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { openDevice } from "../core/gpu/open-device.ts";
import { createLogger } from "../core/platform/log.ts";
import { startService, type ServiceProcess } from "./rig/service-process.ts";
import type { DispatchReport } from "../router-service/cluster/dispatch/attempts.ts";
import { median } from "./load/statistics.ts";
import { coveredMs, overlapBound, type Interval } from "./overlap/layer-times.ts";
import type { Contender } from "./peers/contender.ts";
import { openSwitchyard } from "./engine.ts";

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
      "Router on the first core and shards on the second, a software GPU computing there too: two devices instead of one that they share",
  }),
  microsPerPair: z.number().min(0).optional().meta({
    description:
      "The shards' devices take this long for one expert of a row, and no core: the CPU computes, the rest of the time is waited",
    unit: "µs",
    placeholder: "N",
    defaultText: "they compute on --device, as fast as they can",
  }),
  microsPerRun: z.number().min(0).optional().meta({
    description: "Likewise for any run, beside that",
    unit: "µs",
    placeholder: "N",
  }),
  repeats: z.int().min(1).default(5).meta({
    description: "Times that the clusters take turns",
    placeholder: "N",
  }),
});

type Settings = Readonly<z.output<typeof schema>>;

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

/** CPU time of a process and all its threads so far, milliseconds. Rejects where it is gone. */
async function cpuMs(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "latin1");
  // After the name, which may hold anything: state is field 3, utime and stime are 14 and 15, in hundredths of a second.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

/** What a cluster of this bench is made of beside its router, and when its dispatches were under way. */
interface Apart {
  readonly shards: ServiceProcess[];
  readonly proxies: ServiceProcess[];
  readonly dispatches: Interval[];
}

/** CPU time so far of the router, which is this process, of all shards and of all proxies, milliseconds. */
async function cpuTimes({
  shards,
  proxies,
}: Pick<Apart, "shards" | "proxies">): Promise<[number, number, number]> {
  const sum = async (processes: readonly ServiceProcess[]) =>
    (await Promise.all(processes.map(({ pid }) => cpuMs(pid)))).reduce((a, b) => a + b, 0);
  return [await cpuMs(process.pid), await sum(shards), await sum(proxies)];
}

/** Whether the shards' devices take time by themselves. */
function isTimed({ microsPerPair, microsPerRun }: Settings): boolean {
  return microsPerPair !== undefined || microsPerRun !== undefined;
}

/** What runs as a shard, on which device, with which flags. */
function shardKind(settings: Settings) {
  const { device, microsPerPair = 0, microsPerRun = 0 } = settings;
  if (!isTimed(settings)) return { script: "expert-service/main.ts", device, flags: [] };
  return {
    script: "bench/throttled-shard.ts",
    device: "cpu",
    flags: ["--micros-per-pair", `${microsPerPair}`, "--micros-per-run", `${microsPerRun}`],
  };
}

/** Shards behind a delay proxy each, and the addresses of the proxies. */
async function startShards(
  settings: Settings,
  started: ServiceProcess[],
  cluster: Apart,
): Promise<string[]> {
  const { model, delay, shards, apart } = settings;
  const { script, device, flags } = shardKind(settings);
  return Promise.all(
    Array.from({ length: shards }, async (_, rank) => {
      const shard = await startService({
        name: `shard ${rank}`,
        script,
        argv: ["--model", model, "--device", device, "--rank", `${rank}`, "--port", "0", ...flags],
      });
      started.push(shard);
      cluster.shards.push(shard);
      if (apart) await pin(shard.pid, 1);
      const proxy = await startService({
        name: "delay proxy",
        script: "bench/overlap/proxy-process.ts",
        argv: [`${shard.ready.port}`, `${delay}`],
      });
      started.push(proxy);
      cluster.proxies.push(proxy);
      return `127.0.0.1:${proxy.ready.port}`;
    }),
  );
}

/** What one turn of one setting took. */
interface Turn {
  readonly tokensPerSecond: number;
  /** A decode step, from its start to the next. */
  readonly stepMs: number;
  /** Part of the turn that router, shards and proxies computed, one core being 1. */
  readonly busy: readonly number[];
  /** Part of the decoding during which a dispatch was under way. */
  readonly away: number;
}

/** Runs the program; returns the exit status. */
export async function runOverlapCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, device, sequences, outputLen, repeats, apart } = settings;
  // A software GPU that computes where it is asked to, so on the one core that the process has.
  if (apart || isTimed(settings)) defaultForeignEnvironment("LP_NUM_THREADS", "0");
  const started: ServiceProcess[] = [];
  const engines: Contender[] = [];
  const clusters = SETTINGS.map((): Apart => ({ shards: [], proxies: [], dispatches: [] }));
  let gpu: Gpu | undefined;
  try {
    const numMoeLayers = moeLayers(await readModelConfig(model)).length;
    gpu = await openDevice(device, undefined, createLogger("bench", "warn"));
    for (const [i, microBatches] of SETTINGS.entries()) {
      engines.push(
        await openSwitchyard({
          model,
          gpu,
          weights: "auto",
          shards: await startShards(settings, started, clusters[i]),
          microBatches,
          onDispatch: ({ seconds }: DispatchReport) => {
            const to = performance.now();
            clusters[i].dispatches.push({ from: to - seconds * 1000, to });
          },
          maxStreams: sequences,
          maxStreamTokens: PROMPT_LEN + outputLen,
          maxBatchedTokens: sequences * PROMPT_LEN,
          timeoutMs: 120_000,
        }),
      );
    }
    if (apart) await pin(process.pid, 0);
    const turns = SETTINGS.map((): Turn[] => []);
    // The first turn is to warm up.
    for (let repeat = 0; repeat <= repeats; repeat++) {
      const prompts = Array.from({ length: sequences }, (_, i) =>
        Array.from({ length: PROMPT_LEN }, (_, j) => (repeat * 131 + i * 17 + j * 5) % 300),
      );
      for (const [i, engine] of engines.entries()) {
        const before = await cpuTimes(clusters[i]);
        const startedAt = performance.now();
        const { decodedTokens, decodeMs } = await engine.generate(prompts, outputLen);
        const endedAt = performance.now();
        const wallMs = endedAt - startedAt;
        const after = await cpuTimes(clusters[i]);
        const dispatches = clusters[i].dispatches.splice(0);
        if (repeat === 0) continue;
        turns[i].push({
          tokensPerSecond: (decodedTokens / decodeMs) * 1000,
          stepMs: (decodeMs / decodedTokens) * sequences,
          busy: after.map((ms, who) => (ms - before[who]) / wallMs),
          away: coveredMs(dispatches, endedAt - decodeMs, endedAt) / decodeMs,
        });
      }
    }
    console.log(overlapTable(settings, numMoeLayers, turns));
    return 0;
  } finally {
    for (const engine of engines) await engine.close();
    gpu?.close();
    await Promise.all(started.map((service) => service.stop(0)));
  }
}

function overlapTable(
  settings: Settings,
  numMoeLayers: number,
  turns: readonly (readonly Turn[])[],
): string {
  const { shards, delay, sequences, outputLen, repeats, apart } = settings;
  const cores = apart ? ", router and shards on cores of their own" : "";
  const { microsPerPair = 0, microsPerRun = 0 } = settings;
  const timed = isTimed(settings)
    ? `, whose devices take ${microsPerPair} µs for one expert of a row and ${microsPerRun} µs for a run`
    : "";
  const wireMs = numMoeLayers * 2 * delay;
  const rate = (of: readonly Turn[]) => median(of.map(({ tokensPerSecond }) => tokensPerSecond));
  const base = rate(turns[0]);
  return [
    `${sequences} sequences of ${outputLen} tokens, ${shards} shards${timed}, ${delay} ms each way, ${repeats} turns${cores};`,
    `a step crosses the wire ${2 * numMoeLayers} times, ${wireMs} ms one after the other; CPU ms are those of a step\n`,
    "| --micro-batches | decoded tok/s | median | / one | step ms | router CPU ms | shards CPU ms | proxies CPU ms |",
    "|---|---|---|---|---|---|---|---|",
    ...turns.map((of, i) => {
      const all = of.map(({ tokensPerSecond }) => tokensPerSecond.toFixed(1)).join(", ");
      const stepMs = median(of.map((turn) => turn.stepMs));
      const busy = [0, 1, 2].map((who) => stepMs * median(of.map((turn) => turn.busy[who])));
      const ratio = (rate(of) / base).toFixed(2);
      const times = [stepMs, ...busy].map((ms) => ms.toFixed(1));
      return `| ${[SETTINGS[i], all, rate(of).toFixed(1), ratio, ...times].join(" | ")} |`;
    }),
    "",
    boundText(turns[0], numMoeLayers, 2 * delay),
  ].join("\n");
}

/** What the turns with one micro-batch say that two can bring. */
function boundText(one: readonly Turn[], numMoeLayers: number, wire: number): string {
  const layerMs = median(one.map(({ stepMs }) => stepMs)) / numMoeLayers;
  const awayMs = layerMs * median(one.map(({ away }) => away));
  const times = { router: layerMs - awayMs, shards: Math.max(0, awayMs - wire), wire };
  const { router, shards } = times;
  return [
    `With one, a layer takes router ${router.toFixed(1)} + shards ${shards.toFixed(1)} + wire ${wire.toFixed(1)} ms;`,
    `two halves that take half as long each would be ${overlapBound(times).toFixed(2)} times as fast.`,
  ].join(" ");
}
