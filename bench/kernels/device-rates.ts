/** What a device does at best: bytes that it copies per second, and operations of its best plain product. */

import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import { compileKernel, type Kernel } from "../../core/gpu/kernel.ts";
import type { Encode, KernelTimer } from "../../core/gpu/kernel-timing.ts";
import { middle } from "../../core/middle.ts";
import { COUNTS_BYTES, countsData } from "../../core/gpu/kernels/counts.ts";
import { gemmLinear } from "../../core/gpu/kernels/gemm-linear.ts";
import { gemmBytes, type GemmShape } from "../../core/gpu/kernels/gemm.ts";
import { linear } from "../../core/gpu/kernels/linear.ts";
import { randomBuffer, randomRows, randomWeights } from "../../core/gpu/synthetic-experts.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import type { DeviceRates } from "./floors.ts";

const WORKGROUP = 256;

/** Copies vec4 by vec4: 0 input, 1 output, both vec4<u32> [numFours]. */
const copyKernel: Kernel<{ readonly numFours: number }> = {
  label: "copy",
  grid: ({ numFours }) => {
    const groups = Math.ceil(numFours / WORKGROUP);
    const x = Math.min(groups, 32768);
    return [x, Math.ceil(groups / x), 1];
  },
  wgsl: /* wgsl */ `
@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4<u32>>;
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let i = (group.y * groups.x + group.x) * ${WORKGROUP}u + thread;
  if (i < arrayLength(&input)) { output[i] = input[i]; }
}`,
};

/** Bytes that are copied: more than any cache holds. */
const COPY_BYTES = { software: 64 * 2 ** 20, hardware: 1024 * 2 ** 20 };

/** Bytes read and written per second: the better of a kernel's copies and of the driver's own. */
async function copyRate(gpu: Gpu, timer: KernelTimer, seconds: number): Promise<number> {
  const { maxBufferSize, maxStorageBufferBindingSize } = gpu.device.limits;
  const wanted = COPY_BYTES[gpu.offers.software ? "software" : "hardware"];
  const bytes = Math.min(wanted, maxBufferSize, maxStorageBufferBindingSize);
  const input = await randomBuffer(gpu, "copy input", bytes / 4, [0xffffffff, 0]);
  const output = allocate(gpu, "copy output", bytes, STORAGE);
  const bound = (await compileKernel(gpu, copyKernel)).bind(input, output);
  const byKernel = await timer.time([(pass) => bound.encode(pass, { numFours: bytes / 16 })], {
    seconds,
    sampleSeconds: 0.005,
  });
  const byDriver: number[] = [];
  for (let i = 0; i < 7; i++) {
    const encoder = gpu.device.createCommandEncoder();
    const copies = gpu.offers.software ? 1 : 8;
    for (let n = 0; n < copies; n++) encoder.copyBufferToBuffer(input, 0, output, 0, bytes);
    const startedAt = performance.now();
    gpu.device.queue.submit([encoder.finish()]);
    await gpu.device.queue.onSubmittedWorkDone();
    byDriver.push((performance.now() - startedAt) / 1000 / copies);
  }
  input.destroy();
  output.destroy();
  return (2 * bytes) / Math.min(byKernel, middle(byDriver)!);
}

const SHAPES: readonly GemmShape[] = [
  { threads: [8, 8], block: [4, 4], tile: "f32" },
  { threads: [16, 16], block: [4, 4], tile: "f32" },
  { threads: [16, 8], block: [8, 8], tile: "f32" },
  { threads: [16, 16], block: [8, 8], tile: "f16" },
];

/** The best rate that one of our own plain products reaches, and whose. */
async function productRate(gpu: Gpu, timer: KernelTimer, seconds: number) {
  const size = gpu.offers.software ? 512 : 4096;
  const step: StepSizes = { tokens: size, samples: 0, topK: 1, numSlots: 1 };
  const counts = allocate(gpu, "counts", COUNTS_BYTES, 0x40 | 0x08);
  gpu.device.queue.writeBuffer(counts, 0, countsData(step));
  const x = await randomRows(gpu, size, size);
  const weights = await randomWeights(gpu, "f16", size, size);
  const out = allocate(gpu, "product", size * size * 4, STORAGE);
  const fitting = SHAPES.filter(
    (shape) =>
      gemmBytes(shape) <= gpu.device.limits.maxComputeWorkgroupStorageSize &&
      (shape.tile === "f32" || gpu.offers.shaderF16),
  );
  const sizes = { k: size, n: size, epilogue: "store" } as const;
  const kernels: Kernel<StepSizes>[] = [
    linear({ ...sizes, weights: "f16", lookup: { kind: "tokens", rows: 4 } }),
    ...fitting.map((shape) => gemmLinear({ ...sizes, format: "f16", rows: "tokens", shape })),
  ];
  let best = { rate: 0, label: "none" };
  for (const kernel of kernels) {
    const bound = (await compileKernel(gpu, kernel)).bind(counts, x, weights, out);
    const run: Encode = (pass) => bound.encode(pass, step);
    const rate = (2 * size ** 3) / (await timer.time([run], { seconds }));
    if (rate > best.rate) best = { rate, label: kernel.label };
  }
  for (const buffer of [counts, x, weights, out]) buffer.destroy();
  return best;
}

/** Both rates of a device, and what reached the second. */
export interface MeasuredRates extends DeviceRates {
  readonly product: string;
}

/** Measures both rates by our own kernels. */
export async function measureRates(
  gpu: Gpu,
  timer: KernelTimer,
  seconds: number,
): Promise<MeasuredRates> {
  const bytesPerSecond = await copyRate(gpu, timer, seconds);
  const { rate, label } = await productRate(gpu, timer, seconds);
  return { bytesPerSecond, operationsPerSecond: rate, product: label };
}
