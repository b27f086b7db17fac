/** A shard whose device and disk are as slow as told: `throttled-shard.ts`, with a shard's own flags and those below. */

import { setTimeout as delay } from "node:timers/promises";

import { z } from "zod";

import { NO_SLOT, type ExpertDevice } from "../core/expert-device.ts";
import { type Checkpoint, openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import type { TensorSource } from "../core/model/families/model-family.ts";
import { loadConfig } from "../core/platform/config.ts";
import { expertAbout, expertConfigSchema } from "../expert-service/config.ts";
import { openShardDevice, type ShardDevice } from "../expert-service/device.ts";
import { runShardProcess } from "../expert-service/process.ts";

const schema = expertConfigSchema.extend({
  microsPerPair: z.number().min(0).default(0).meta({
    description: "Time that the device takes at least for one expert of a row",
    unit: "µs",
    placeholder: "N",
  }),
  microsPerRun: z.number().min(0).default(0).meta({
    description: "Time that the device takes at least for any run, beside that",
    unit: "µs",
    placeholder: "N",
  }),
  diskBytesPerSecond: z.number().positive().default(Infinity).meta({
    description: "Bytes of expert weights that the disk gives in a second at most",
    placeholder: "N",
    defaultText: "as fast as it is",
  }),
});

type Speed = Pick<z.output<typeof schema>, "microsPerPair" | "microsPerRun">;

/**
 * The device, a run of which takes at least the time told: what its own computation leaves of that is waited, which takes
 * no core from others. Runs still come one after another.
 */
function throttled(device: ExpertDevice, { microsPerPair, microsPerRun }: Speed): ExpertDevice {
  let tail: Promise<unknown> = Promise.resolve();
  const run: ExpertDevice["run"] = (layer, rows, slots, weights) => {
    const pairs = slots.reduce((count, slot) => count + Number(slot !== NO_SLOT), 0);
    const result = tail.then(async () => {
      const endsAt = performance.now() + (microsPerRun + pairs * microsPerPair) / 1000;
      const sums = await device.run(layer, rows, slots, weights);
      const left = endsAt - performance.now();
      if (left > 0) await delay(left);
      return sums;
    });
    tail = result.catch(() => undefined);
    return result;
  };
  return new Proxy(device, {
    get: (target, key) => {
      if (key === "run") return run;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** The device of a shard, every ExpertDevice of which is as slow as told. */
function throttledShardDevice(device: ShardDevice, speed: Speed): ShardDevice {
  return {
    ...device,
    create: async (formats) => throttled(await device.create(formats), speed),
  };
}

/** A checkpoint whose expert weights come one after another, and no faster than told. */
function slowlyRead(checkpoint: Checkpoint, bytesPerSecond: number): Checkpoint {
  if (bytesPerSecond === Infinity) return checkpoint;
  let tail: Promise<unknown> = Promise.resolve();
  const read = async (sources: readonly TensorSource[]) => {
    const startedAt = performance.now();
    const before = checkpoint.bytesRead();
    const matrices = await checkpoint.readMatrices(sources);
    const seconds = (checkpoint.bytesRead() - before) / bytesPerSecond;
    const left = startedAt + seconds * 1000 - performance.now();
    if (left > 0) await delay(left);
    return matrices;
  };
  return {
    ...checkpoint,
    readMatrices: (sources) => {
      const result = tail.then(() => read(sources));
      tail = result.catch(() => undefined);
      return result;
    },
  };
}

const { microsPerPair, microsPerRun, diskBytesPerSecond, ...config } = loadConfig(schema, {
  ...expertAbout,
  command: "node bench/throttled-shard.ts",
});
await runShardProcess(
  config,
  async (...device) =>
    throttledShardDevice(await openShardDevice(...device), { microsPerPair, microsPerRun }),
  async (dir) => slowlyRead(await openCheckpoint(dir), diskBytesPerSecond),
);
