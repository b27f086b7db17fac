/** The local half of `runExperts` on the engine's own GPU. */

import { type ExpertFormat, type FormatOf, formatsAmong } from "../../../core/expert-format.ts";
import { type Gpu, settleWrites } from "../../../core/gpu/device.ts";
import { type ExpertBuffers, GpuExpertFfn } from "../../../core/gpu/expert-ffn.ts";
import type { ExpertKernels } from "../../../core/gpu/expert-kernels.ts";
import { warmUpExperts } from "../../../core/gpu/expert-warm-up.ts";
import type { Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { type ModelConfig, moeLayers } from "../../../core/model/config.ts";
import { loadAllExperts, type OnExpert } from "../local-experts.ts";
import type { RunExperts } from "../run-experts.ts";

/** A few MoE layers that have experts in every format of the model. */
function layersOfAllFormats(config: ModelConfig, formatOf: FormatOf): number[] {
  const met = new Set<ExpertFormat>();
  return moeLayers(config).filter((layer) => {
    const fresh = formatsAmong(formatOf, [layer], config.numExperts).filter((one) => !met.has(one));
    for (const format of fresh) met.add(format);
    return fresh.length > 0;
  });
}

/** Experts on the engine's GPU, encoded into the step's own pass: nothing is read back. Rejects as loading does. */
export async function createLocalGpuExperts(
  gpu: Gpu,
  checkpoint: Checkpoint,
  formatOf: FormatOf,
  buffers: ExpertBuffers,
  onExpert?: OnExpert,
  kernelsFor?: (formats: readonly ExpertFormat[]) => Promise<ExpertKernels>,
): Promise<RunExperts> {
  const { config } = checkpoint;
  const formats = formatsAmong(formatOf, moeLayers(config), config.numExperts);
  const kernels = await kernelsFor?.(formats);
  const ffn = await GpuExpertFfn.create(gpu, config, formats, buffers, {
    kernels,
    maxSlots: config.numExperts,
  });
  const device = {
    allocate: ffn.allocate.bind(ffn),
    loadPacked: ffn.loadPacked.bind(ffn),
    settled: () => settleWrites(gpu),
  };
  try {
    await loadAllExperts(checkpoint, device, formatOf, onExpert);
    // The steps of a runner's own warm-up are of few sizes and need not come by every regime.
    const sizes = {
      tokens: 1,
      samples: 0,
      topK: config.numExpertsPerToken,
      numSlots: config.numExperts,
    };
    await warmUpExperts(gpu, ffn, layersOfAllFormats(config, formatOf), buffers.counts, sizes);
  } catch (error) {
    ffn.close();
    throw error;
  }
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
