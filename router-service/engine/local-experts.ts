/** The local half of `runExperts`: all experts where the engine computes. */

import type { ExpertDevice, WeightsDtype } from "../../core/expert-device.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { type ExpertBuffers, GpuExpertFfn } from "../../core/gpu/expert-ffn.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/weights.ts";
import type { RunExperts } from "./run-experts.ts";

/** Called after each expert that was loaded. */
export type OnExpert = (loaded: number, total: number) => void;

/** Experts on the engine's GPU, encoded into the step's own pass: nothing is read back. Rejects as loading does. */
export async function createLocalGpuExperts(
  gpu: Gpu,
  checkpoint: Checkpoint,
  weights: WeightsDtype,
  buffers: ExpertBuffers,
  onExpert?: OnExpert,
): Promise<RunExperts> {
  const { config } = checkpoint;
  const ffn = await GpuExpertFfn.create(gpu, config, weights, buffers);
  await loadAll(checkpoint, ffn, onExpert);
  return (layer, hiddenStates, routing) => {
    if (routing.gpu === undefined) throw new TypeError("local GPU experts need a step on the GPU");
    ffn.encode(routing.gpu.pass, layer, {
      tokens: hiddenStates.numTokens,
      samples: 0,
      topK: routing.topK,
      numSlots: config.numExperts,
    });
    const shape = [hiddenStates.numTokens, hiddenStates.hiddenSize];
    return { kind: "gpu", tensor: { buffer: buffers.sums, shape, dtype: "f32" } };
  };
}

/** Experts on a device of their own in this process, as the CPU's; the device stays the caller's. Rejects as loading does. */
export async function createLocalDeviceExperts(
  device: ExpertDevice,
  checkpoint: Checkpoint,
  onExpert?: OnExpert,
): Promise<RunExperts> {
  await loadAll(checkpoint, device, onExpert);
  return async (layer, _hiddenStates, routing) => {
    const { rows, routing: chosen } = await routing.read();
    const values = await device.run(layer, rows, chosen.ids, chosen.weights);
    return { kind: "host", values };
  };
}

/** Every expert into the slot of its id. */
async function loadAll(
  checkpoint: Checkpoint,
  device: Pick<ExpertDevice, "allocate" | "load">,
  onExpert: OnExpert | undefined,
): Promise<void> {
  const { numExperts } = checkpoint.config;
  const layers = moeLayers(checkpoint.config);
  for (const layer of layers) device.allocate(layer, numExperts);
  let loaded = 0;
  for (const layer of layers) {
    for (let expert = 0; expert < numExperts; expert++) {
      device.load(layer, expert, await readExpert(checkpoint, layer, expert));
      onExpert?.(++loaded, layers.length * numExperts);
    }
  }
}
