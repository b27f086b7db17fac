/** What buffers would take, told by the functions that allocate them. */

import type { Gpu } from "./device.ts";

/** Bytes of the buffers that `allocating` makes, of whatever size; nothing is allocated. Throws what it throws. */
export function measureBuffers(allocating: (gpu: Gpu) => unknown): number {
  let bytes = 0;
  const limits = {
    maxBufferSize: Number.POSITIVE_INFINITY,
    maxStorageBufferBindingSize: Number.POSITIVE_INFINITY,
  };
  const device = {
    limits,
    createBuffer: ({ size }: GPUBufferDescriptor) => {
      bytes += size;
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
  return bytes;
}
