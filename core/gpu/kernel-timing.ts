/** How long work takes on the device, by its own clock where it has one that can be read, else by ours. */

import { middle } from "../middle.ts";
import { inTime } from "./deadline.ts";
import { allocate, type Gpu, READ_BACK } from "./device.ts";
import { mapForReading } from "./polling.ts";

/** Encodes one run of what is timed. */
export type Encode = (pass: GPUComputePassEncoder) => void;

/** How long a measurement may take and how it is made. */
export interface TimingOptions {
  /** Time that the timed runs may take together; at least three are made. */
  readonly seconds: number;
  /** Runs of one sample take about this long at least, so that clocks are fine enough; seconds. */
  readonly sampleSeconds?: number;
}

/** Samples of a measurement at most. */
const MAX_SAMPLES = 31;

/** Runs of one sample at most. */
const MAX_RUNS = 2000;

/** Times work on one device. */
export interface KernelTimer {
  /** Median seconds of one run; `encodes` take turns, so that they can differ in what they read. Runs once before. Rejects with DeviceTimeoutError. */
  time(encodes: readonly Encode[], options: TimingOptions): Promise<number>;
  close(): void;
}

/** Opens a timer. */
export function openTimer(gpu: Gpu): KernelTimer {
  const { device } = gpu;
  // A program on the CPU is timed by our clock: its own tells when it took commands, not when it ran them.
  const byDevice = gpu.offers.timestamps && !gpu.offers.software;
  const querySet = byDevice ? device.createQuerySet({ type: "timestamp", count: 2 }) : undefined;
  const QUERY_RESOLVE = 0x200;
  const COPY_SRC = 0x04;
  const resolved = allocate(gpu, "timestamps", 16, QUERY_RESOLVE | COPY_SRC);
  const staging = allocate(gpu, "timestamps read-back", 16, READ_BACK);
  let turn = 0;

  async function sample(encodes: readonly Encode[], runs: number): Promise<number> {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass(
      querySet && {
        timestampWrites: { querySet, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 },
      },
    );
    for (let run = 0; run < runs; run++) encodes[turn++ % encodes.length](pass);
    pass.end();
    if (querySet) {
      encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, staging, 0, 16);
    }
    const startedAt = performance.now();
    device.queue.submit([encoder.finish()]);
    if (!querySet) {
      await inTime("a measured run", device.queue.onSubmittedWorkDone());
      return (performance.now() - startedAt) / 1000 / runs;
    }
    await inTime("a measured run", mapForReading(staging, 16));
    const [begin, end] = new BigUint64Array(staging.getMappedRange(0, 16).slice(0));
    staging.unmap();
    return Number(end - begin) / 1e9 / runs;
  }

  return {
    async time(encodes, { seconds, sampleSeconds = 0.002 }) {
      await sample(encodes, encodes.length);
      const once = Math.max(1e-7, await sample(encodes, 1));
      const runs = Math.max(1, Math.min(MAX_RUNS, Math.ceil(sampleSeconds / once)));
      const samples = Math.max(3, Math.min(MAX_SAMPLES, Math.floor(seconds / (once * runs))));
      const times: number[] = [];
      for (let i = 0; i < samples; i++) times.push(await sample(encodes, runs));
      return middle(times)!;
    },
    close() {
      querySet?.destroy();
      resolved.destroy();
      staging.destroy();
    },
  };
}
