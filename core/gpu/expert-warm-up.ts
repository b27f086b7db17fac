/** Runs that make a driver compile: many compile at the first run, which no request must wait for. */

import { inTime } from "./deadline.ts";
import type { Gpu } from "./device.ts";
import type { GpuExpertFfn } from "./expert-ffn.ts";
import { countsData, type StepSizes } from "./kernels/counts.ts";

/**
 * Runs every kernel of every regime once over these layers, on rows and routing as they lie in their buffers.
 * @param counts the uniform that the experts were made over; holds `sizes` afterwards
 * Rejects with DeviceTimeoutError.
 */
export async function warmUpExperts(
  gpu: Gpu,
  ffn: GpuExpertFfn,
  layers: readonly number[],
  counts: GPUBuffer,
  sizes: StepSizes,
): Promise<void> {
  const { queue } = gpu.device;
  queue.writeBuffer(counts, 0, countsData(sizes));
  const encoder = gpu.device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  for (const layer of layers) ffn.encodeAll(pass, layer, sizes);
  pass.end();
  queue.submit([encoder.finish()]);
  await inTime("the first run of the experts", queue.onSubmittedWorkDone());
}
