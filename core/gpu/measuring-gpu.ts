/** What buffers would take, told by the functions that allocate them. */

import type { Gpu } from "./device.ts";

/** A buffer that would be allocated. */
export interface MeasuredBuffer {
  readonly label: string;
  readonly bytes: number;
  /** As WebGPU has it. */
  readonly usage: number;
}

/** The buffers that `allocating` makes, of whatever size; nothing is allocated. Throws what it throws. */
export function listBuffers(allocating: (gpu: Gpu) => unknown): MeasuredBuffer[] {
  const buffers: MeasuredBuffer[] = [];
  const limits = {
    maxBufferSize: Number.POSITIVE_INFINITY,
    maxStorageBufferBindingSize: Number.POSITIVE_INFINITY,
  };
  const device = {
    limits,
    createBuffer: ({ label = "", size, usage }: GPUBufferDescriptor) => {
      buffers.push({ label, bytes: size, usage });
      return { size, destroy: () => {} };
    },
    pushErrorScope: () => {},
    popErrorScope: async () => null,
  };
  allocating({
    device: device as unknown as GPUDevice,
    adapter: "none",
    shaderF16: true,
    driver: "none",
    offers: {
      shaderF16: true,
      subgroups: false,
      timestamps: false,
      software: false,
      subgroupMatrix: [],
      minSubgroupSize: 1,
      maxSubgroupSize: 1,
    },
    maxBindingBytes: Number.POSITIVE_INFINITY,
    lost: new Promise(() => {}),
    fail: () => {},
    close: () => {},
  });
  return buffers;
}

/** Bytes of buffers together. */
export function totalBytes(buffers: readonly MeasuredBuffer[]): number {
  return buffers.reduce((sum, { bytes }) => sum + bytes, 0);
}
