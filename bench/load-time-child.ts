/** One measurement of bench/load-time.ts in a process of its own: loads experts as a shard does, or only reads their bytes. */

import { allIn, type ExpertFormat } from "../core/expert-format.ts";
import { bytesByExpert } from "../core/expert-formats.ts";
import { loadExperts } from "../core/load-experts.ts";
import { openCheckpoint, openWeights } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { readExpert } from "../core/model/checkpoint/weights.ts";
import { createLogger } from "../core/platform/log.ts";
import { openShardDevice } from "../expert-service/device.ts";

/** What the process is told, as JSON. */
export interface LoadTimeTask {
  readonly kind: "load" | "read";
  readonly dir: string;
  readonly format: ExpertFormat;
  readonly device: "auto" | "webgpu" | "cpu";
}

/** What it answers, as JSON. */
export interface LoadTimeAnswer {
  readonly adapter: string;
  readonly seconds: number;
  /** Bytes of the weight files that were read. */
  readonly bytesRead: number;
  readonly residentBytes: number;
  readonly predictedBytes: number;
  /** Host memory at most, above what there was before the load. */
  readonly peakBytes: number;
}

/** Bytes of one plain read. */
const CHUNK = 8 * 2 ** 20;

const task = JSON.parse(process.argv[2]) as LoadTimeTask;
const answer = task.kind === "load" ? await load(task) : await read(task);
process.stdout.write(`${JSON.stringify(answer)}\n`);

async function load({ dir, format, device: setting }: LoadTimeTask): Promise<LoadTimeAnswer> {
  const checkpoint = await openCheckpoint(dir);
  const { config } = checkpoint;
  const opened = await openShardDevice(
    { device: setting, adapter: undefined, memoryLimit: undefined },
    config,
    createLogger("bench", "silent"),
  );
  const device = await opened.create([format]);
  const before = checkpoint.bytesRead();
  const memoryBefore = process.memoryUsage.rss();
  const begin = performance.now();
  const loads = moeLayers(config).flatMap((layer) => {
    const formats = Array.from({ length: config.numExperts }, () => format);
    device.allocate(layer, formats);
    return formats.map((_, expert) => ({ layer, expert, slot: expert, format }));
  });
  await loadExperts(loads, {
    sizes: config,
    read: (layer, expert) => readExpert(checkpoint, layer, expert),
    device,
  });
  const seconds = (performance.now() - begin) / 1000;
  const measured = {
    adapter: opened.adapter,
    seconds,
    bytesRead: checkpoint.bytesRead() - before,
    residentBytes: device.residentBytes(),
    predictedBytes: bytesByExpert(config, allIn(format)).reduce((a, b) => a + b, 0),
    peakBytes: process.resourceUsage().maxRSS * 1024 - memoryBefore,
  };
  device.close();
  opened.close();
  await checkpoint.close();
  return measured;
}

/** Reads the routed experts' bytes, file after file, into one buffer. */
async function read({ dir }: LoadTimeTask): Promise<LoadTimeAnswer> {
  const { files } = await openWeights(dir);
  const { open } = await import("node:fs/promises");
  const buffer = new Uint8Array(CHUNK);
  let bytesRead = 0;
  const begin = performance.now();
  for (const file of files) {
    const handle = await open(file.file);
    const entries = [...file.tensors]
      .filter(([name]) => name.includes(".experts."))
      .map(([, entry]) => entry)
      .sort((a, b) => a.begin - b.begin);
    for (const entry of entries) {
      for (let at = entry.begin; at < entry.end;) {
        const length = Math.min(CHUNK, entry.end - at);
        const done = (await handle.read(buffer, 0, length, at)).bytesRead;
        if (done === 0) throw new Error(`${file.file}: ends at byte ${at}`);
        at += done;
        bytesRead += done;
      }
    }
    await handle.close();
  }
  const seconds = (performance.now() - begin) / 1000;
  for (const file of files) await file.close();
  const none = { residentBytes: 0, predictedBytes: 0, peakBytes: 0 };
  return { adapter: "plain reads", seconds, bytesRead, ...none };
}
