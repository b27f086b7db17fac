/** The local half of `runExperts` on the engine's own GPU. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { type ExpertBuffers, GpuExpertFfn } from "../../core/gpu/expert-ffn.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import { loadAllExperts, type OnExpert } from "./local-experts.ts";
import type { RunExperts } from "./run-experts.ts";

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
  await loadAllExperts(checkpoint, ffn, onExpert);
  return (layer, hiddenStates, routing) => {
    if (routing.pass === undefined) throw new TypeError("local GPU experts need a step on the GPU");
    ffn.encode(routing.pass, layer, {
      tokens: hiddenStates.numTokens,
      samples: 0,
      topK: routing.topK,
      numSlots: config.numExperts,
    });
    return { kind: "gpu" };
  };
}
