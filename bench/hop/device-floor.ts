/** The least that a hop's device work can cost: reading bytes back, and writing, running a kernel and reading, on this machine's GPU. */

import { allocate, openGpu, READ_BACK, STORAGE, type Gpu } from "../../core/gpu/device.ts";
import { compileKernel, type Kernel } from "../../core/gpu/kernel.ts";
import { mapForReading } from "../../core/gpu/polling.ts";

const WORKGROUP_SIZE = 64;

/** Doubles every element: a kernel that does next to nothing. `input`, `output`: [numElements] f32. */
const doubleKernel: Kernel<{ readonly numElements: number }> = {
  label: "double",
  wgsl: /* wgsl */ `
@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(${WORKGROUP_SIZE})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < arrayLength(&output)) {
    output[id.x] = 2.0 * input[id.x];
  }
}`,
  grid: ({ numElements }) => [Math.ceil(numElements / WORKGROUP_SIZE), 1, 1],
};

/** Round trips on one device, buffers made once. */
export interface DeviceFloor {
  readonly adapter: string;
  /** Milliseconds to copy the result buffer to the host. */
  readBack(): Promise<number>;
  /** Milliseconds to write the input, run one kernel and read its result. */
  writeRunRead(): Promise<number>;
  close(): void;
}

/** Opens the device for round trips of `numElements` f32 values. Throws NoAdapterError. */
export async function openDeviceFloor(numElements: number): Promise<DeviceFloor> {
  const gpu = await openGpu();
  const bytes = numElements * 4;
  const input = allocate(gpu, "floor input", bytes, STORAGE);
  const output = allocate(gpu, "floor output", bytes, STORAGE);
  const staging = allocate(gpu, "floor staging", bytes, READ_BACK);
  const kernel = (await compileKernel(gpu, doubleKernel)).bind(input, output);
  const host = new Float32Array(numElements);
  return {
    adapter: gpu.adapter,
    async readBack() {
      const startedAt = performance.now();
      await readInto(gpu, output, staging, host);
      return performance.now() - startedAt;
    },
    async writeRunRead() {
      const startedAt = performance.now();
      gpu.device.queue.writeBuffer(input, 0, host);
      await readInto(gpu, output, staging, host, (encoder) => {
        const pass = encoder.beginComputePass();
        kernel.encode(pass, { numElements });
        pass.end();
      });
      return performance.now() - startedAt;
    },
    close: () => gpu.close(),
  };
}

async function readInto(
  gpu: Gpu,
  source: GPUBuffer,
  staging: GPUBuffer,
  host: Float32Array,
  before?: (encoder: GPUCommandEncoder) => void,
): Promise<void> {
  const encoder = gpu.device.createCommandEncoder();
  before?.(encoder);
  encoder.copyBufferToBuffer(source, 0, staging, 0, host.byteLength);
  gpu.device.queue.submit([encoder.finish()]);
  await mapForReading(staging, host.byteLength, 1);
  host.set(new Float32Array(staging.getMappedRange(0, host.byteLength)));
  staging.unmap();
}
