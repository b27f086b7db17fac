/** What loading experts costs the runs beside it: `npm run bench -- live-loading`. */

import { z } from "zod";

import { openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { packRows } from "../core/wire-rows.ts";
import { encodeDispatch } from "../core/wire.ts";
import { percentile } from "./load/statistics.ts";
import { startService } from "./rig/service-process.ts";
import {
  helloFor,
  openShardConnection,
  placementOf,
  type ShardConnection,
} from "./rig/shard-connection.ts";
import { waitFor } from "./rig/wait-for.ts";

/** Rows of a dispatch: a step of so many sequences. */
const ROWS = 8;

/** Longest that memory may take to be freed, milliseconds. */
const FREE_MS = 10_000;

const schema = z.object({
  model: serviceOptions.model,
  device: serviceOptions.device,
  seconds: z.number().min(1).default(5).meta({
    description: "How long runs are measured before and after the load",
    unit: "s",
    placeholder: "N",
  }),
  repeats: z.int().min(1).default(1).meta({
    description: "Times that the other half is loaded, and freed again",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- live-loading",
  summary:
    "Runs dispatches over half of a model's experts on one shard without a pause, has it load the other half meanwhile, and prints what that costs the runs.",
};

/** Runs the program; returns the exit status. */
export async function runLiveLoadingCommand(argv: string[]): Promise<number> {
  const { model, device, seconds, repeats } = loadConfig(schema, about, argv);
  const checkpoint = await openCheckpoint(model);
  const shard = await startService({
    name: "shard",
    script: "expert-service/main.ts",
    argv: [`--model=${model}`, `--device=${device}`, "--port=0", "--drain-timeout=0"],
  });
  try {
    const { config } = checkpoint;
    const connection = openShardConnection(`127.0.0.1:${shard.ready.port}`);
    connection.send({ $case: "hello", value: helloFor(checkpoint) });
    const { adapter } = await connection.next("hello");
    const all = Array.from({ length: config.numExperts }, (_, expert) => expert);
    const half = all.slice(0, config.numExperts / 2);
    const halfOnly = (epoch: number) => {
      const value = placementOf(checkpoint, half, { epoch, oldestLiveEpoch: epoch });
      connection.send({ $case: "placement", value });
      return connection.next("placementAck");
    };
    const { residentBytes: halfBytes } = await halfOnly(1);
    const layers = moeLayers(config);
    const dispatchOf = (dispatchId: number, epoch: number) => {
      const pairs = ROWS * config.numExpertsPerToken;
      return encodeDispatch(
        {
          dispatchId,
          epoch,
          layer: layers[dispatchId % layers.length],
          timeoutMs: 60_000,
          hiddenSize: config.hiddenSize,
          topK: config.numExpertsPerToken,
          traceparent: "",
        },
        {
          rows: packRows(
            new Float32Array(ROWS * config.hiddenSize).fill(0.01),
            config.hiddenSize,
            "f32",
          ),
          expertIds: Uint16Array.from(
            { length: pairs },
            (_, pair) => half[(pair * 7 + dispatchId) % half.length],
          ),
          topkWeights: new Float32Array(pairs).fill(1 / config.numExpertsPerToken),
        },
      );
    };
    const drives: Record<"before" | "during" | "after", Drive[]> = {
      before: [],
      during: [],
      after: [],
    };
    for (let repeat = 0; repeat < repeats; repeat++) {
      const epoch = 1 + 2 * repeat;
      const drive = (ms: number) => driveFor(connection, (id) => dispatchOf(id, epoch), ms);
      drives.before.push(await drive(seconds * 1000));
      const more = { epoch: epoch + 1, oldestLiveEpoch: epoch };
      connection.send({ $case: "placement", value: placementOf(checkpoint, all, more) });
      drives.during.push(await drive(Number.POSITIVE_INFINITY));
      drives.after.push(await drive(seconds * 1000));
      await halfOnly(epoch + 2);
      await waitFor(
        "half of the experts to be freed",
        async () => connection.status()?.residentBytes === halfBytes,
        FREE_MS,
      );
    }
    connection.close();
    console.log(`${adapter}; ${ROWS} rows · ${config.numExpertsPerToken} experts a dispatch`);
    const numLoaded = layers.length * (config.numExperts - half.length);
    const times = repeats === 1 ? "" : `${repeats} times `;
    const loadSeconds = joined(drives.during).ms / repeats / 1000;
    console.log(`${times}${numLoaded} experts loaded in ${loadSeconds.toFixed(2)} s\n`);
    console.log("| runs | in a second | p50 ms | p99 ms | longest ms |");
    console.log("| --- | --- | --- | --- | --- |");
    for (const [name, those] of Object.entries(drives)) {
      const drive = joined(those);
      console.log(`| ${name} | ${drive.times.length > 0 ? figures(drive) : "none"} |`);
    }
    const kept = rateOf(drives.during) / rateOf([...drives.before, ...drives.after]);
    console.log(
      `\nWhile experts are loaded, runs keep ${(100 * kept).toFixed(0)} % of their rate.`,
    );
    return 0;
  } finally {
    await shard.stop();
    await checkpoint.close();
  }
}

interface Drive {
  readonly ms: number;
  /** Of each run, milliseconds. */
  readonly times: readonly number[];
}

/** Dispatches one after the other until time is over or a placement is acknowledged. */
async function driveFor(
  connection: ShardConnection,
  dispatchOf: (dispatchId: number) => ReturnType<typeof encodeDispatch>,
  forMs: number,
): Promise<Drive> {
  const times: number[] = [];
  const startedAt = performance.now();
  let acknowledged = false;
  for (let id = 1; !acknowledged && performance.now() - startedAt < forMs; id++) {
    const sentAt = performance.now();
    connection.send({ $case: "dispatch", value: dispatchOf(id) });
    for (;;) {
      const message = await connection.nextOrEnd();
      if (!("$case" in message)) throw new Error(`the stream ended: ${message.details}`);
      if (message.$case === "partialSum") break;
      if (message.$case !== "placementAck") throw new Error(JSON.stringify(message));
      acknowledged = true;
    }
    times.push(performance.now() - sentAt);
  }
  return { ms: performance.now() - startedAt, times };
}

function joined(drives: readonly Drive[]): Drive {
  return {
    ms: drives.reduce((sum, { ms }) => sum + ms, 0),
    times: drives.flatMap(({ times }) => times),
  };
}

/** Runs in a millisecond. */
function rateOf(drives: readonly Drive[]): number {
  const { ms, times } = joined(drives);
  return times.length / ms;
}

function figures({ ms, times }: Drive): string {
  const sorted = times.toSorted((a, b) => a - b);
  const parts = [0.5, 0.99, 1].map((part) => percentile(sorted, part));
  const cells = [(times.length * 1000) / ms, ...parts];
  return cells.map((value) => value.toPrecision(3)).join(" | ");
}
