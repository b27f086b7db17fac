/** What a device allocates, counted. */

import type { Gpu } from "../../core/gpu/device.ts";

/** Counts the bytes of the device's buffers that are made and not destroyed from now on. */
export function countBuffers(gpu: Gpu): () => number {
  let bytes = 0;
  const createBuffer = gpu.device.createBuffer.bind(gpu.device);
  gpu.device.createBuffer = (descriptor) => {
    const buffer = createBuffer(descriptor);
    bytes += descriptor.size;
    const destroy = buffer.destroy.bind(buffer);
    buffer.destroy = () => {
      bytes -= descriptor.size;
      destroy();
    };
    return buffer;
  };
  return () => bytes;
}
