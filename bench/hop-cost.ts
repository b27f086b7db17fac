/** What a hop to the expert shards costs per MoE layer, beside its floor measured in the same run: `npm run bench -- hop`. */

import { z } from "zod";

import { readModelConfig } from "../core/model/load-config.ts";
import { moeLayers } from "../core/model/config.ts";
import { defaultForeignEnvironment, loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { hopCosts, hopTable, type HopMeasurement } from "./hop/cost.ts";
import { median } from "./load/statistics.ts";
import { openDeviceFloor } from "./hop/device-floor.ts";
import { startEchoShards, type HopSizes } from "./hop/echo-floor.ts";
import { generateLoad } from "./load/generate.ts";
import { loadSchema } from "./load/options.ts";
import { timePerOutputToken } from "./load/statistics.ts";
import { launcherEnvironment, withClusters, type MeasuredCluster } from "./measured-clusters.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: serviceOptions.device,
  repeats: z.int().min(1).default(5).meta({
    description: "Times that the clusters take turns",
    placeholder: "N",
  }),
  outputLen: loadSchema.shape.outputLen,
});

/** Settings of a measurement, parsed. */
export type HopSettings = Readonly<z.output<typeof schema>>;

/** Round trips of each kind in one repeat, after as many that are thrown away. */
const ROUND_TRIPS = 50;

async function measureTpot(url: string, settings: HopSettings, seed: number): Promise<number[]> {
  const options = loadSchema.parse({
    url,
    model: settings.model,
    seed,
    inputLen: 32,
    outputLen: settings.outputLen,
    numPrompts: 2,
    maxConcurrency: 1,
    ignoreEos: true,
  });
  const { records, summary } = await generateLoad(options);
  if (summary.failed > 0) throw new Error(`requests failed: ${JSON.stringify(summary.failures)}`);
  return records.flatMap((record) =>
    record.kind === "completed" ? (timePerOutputToken(record) ?? []) : [],
  );
}

async function timeRoundTrips(roundTrip: () => Promise<number>): Promise<number[]> {
  for (let i = 0; i < ROUND_TRIPS; i++) await roundTrip();
  const times: number[] = [];
  for (let i = 0; i < ROUND_TRIPS; i++) times.push(await roundTrip());
  return times;
}

/** Measures TPOT and floors in turns on clusters that are already up; returns a Markdown table. */
export async function measureHop(
  clusters: readonly MeasuredCluster[],
  settings: HopSettings,
): Promise<string> {
  const config = await readModelConfig(settings.model);
  const sizes: HopSizes = {
    numRows: 1,
    hiddenSize: config.hiddenSize,
    topK: config.numExpertsPerToken,
    wire: "f16",
  };
  const rowElements = sizes.hiddenSize + 2 * sizes.topK;
  // The floor's device is to be as that of a shard beside others.
  const most = Math.max(...clusters.map(({ shards }) => shards));
  for (const [name, value] of Object.entries(launcherEnvironment(most))) {
    defaultForeignEnvironment(name, value);
  }
  const device = await openDeviceFloor(rowElements);
  const readBackMs: number[] = [];
  const writeRunReadMs: number[] = [];
  const measured = new Map<number, { tpotMs: number[]; echoMs: number[] }>();
  try {
    for (let repeat = 0; repeat < settings.repeats; repeat++) {
      for (const { shards, cluster } of clusters) {
        const times = measured.get(shards) ?? { tpotMs: [], echoMs: [] };
        measured.set(shards, times);
        times.tpotMs.push(...(await measureTpot(cluster.url, settings, repeat)));
        if (shards === 0) continue;
        const echo = await startEchoShards(shards);
        try {
          times.echoMs.push(...(await timeRoundTrips(() => echo.roundTrip(sizes))));
        } finally {
          echo.close();
        }
      }
      readBackMs.push(...(await timeRoundTrips(() => device.readBack())));
      writeRunReadMs.push(...(await timeRoundTrips(() => device.writeRunRead())));
    }
  } finally {
    device.close();
  }
  const measurements: HopMeasurement[] = [...measured].map(([shards, { tpotMs, echoMs }]) => ({
    shards,
    tpotMs,
    echoMs,
  }));
  const numLayers = moeLayers(config).length;
  const costs = hopCosts(measurements, { readBackMs, writeRunReadMs }, numLayers);
  const local = median(measured.get(0)?.tpotMs ?? []);
  return `floors on ${device.adapter}, one row of ${sizes.hiddenSize} f16, ${numLayers} MoE layers\n\n${hopTable(local, costs)}`;
}

/** Runs the program; returns the exit status. */
export async function runHopCommand(argv: string[]): Promise<number> {
  const about = {
    command: "npm run bench -- hop",
    summary: "The cost of a hop per MoE layer with 1 and 2 shards, beside its floor.",
  };
  const settings = loadConfig(schema, about, argv);
  console.log(await withClusters(settings, (clusters) => measureHop(clusters, settings)));
  return 0;
}
