/** The attention kernels of a model's layers: one per window and per kind of step. */

import type { Gpu } from "../../../core/gpu/device.ts";
import { type BoundKernel, compileKernel, type CompiledKernel } from "../../../core/gpu/kernel.ts";
import { attention, type AttentionOptions } from "../../../core/gpu/kernels/attention.ts";
import { attentionTiles, fitsTiles } from "../../../core/gpu/kernels/attention-tiles.ts";
import { attentionSplits, fitsSplits } from "../../../core/gpu/kernels/attention-splits.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** How sequences are laid out in the paged cache, and what computes over it. */
export interface AttentionBlocks extends Pick<AttentionOptions, "blockSize" | "blocksPerSequence"> {
  readonly kernels: AttentionKernels;
}

/** Kernels for programs on the CPU, or for real GPUs. */
export type AttentionKernels = "software" | "hardware";

/** What is good for adapters of this one's kind. */
export function attentionFor({ offers }: Gpu): AttentionKernels {
  return offers.software ? "software" : "hardware";
}

/** Attention from queries and cache to results per head, for any layer. */
export interface AttentionCore {
  /** Binds a layer's; `sinks` f32 [numHeads] where the model has them. */
  bind(layer: number, b: StepBuffers, cache: GPUBuffer, sinks?: GPUBuffer): BoundKernel<StepSizes>;
}

type Options = Omit<AttentionOptions, "tokens" | "lanes">;

/** Kernels of one window, and which of them a step runs: every token is computed by one. */
interface Compiled {
  readonly kernels: readonly CompiledKernel<StepSizes>[];
  readonly runs: (sizes: StepSizes) => readonly boolean[];
}

/** Compiles attention for layers with these windows [numLayers]. Rejects with KernelError. */
export async function compileAttention(
  gpu: Gpu,
  windows: readonly (number | undefined)[],
  options: Omit<Options, "window"> & Pick<AttentionBlocks, "kernels">,
): Promise<AttentionCore> {
  const compiled = new Map<number | undefined, Compiled>();
  const compile =
    options.kernels === "hardware" && fitsTiles(options) ? compileForHardware : compileForSoftware;
  for (const window of new Set(windows)) {
    compiled.set(window, await compile(gpu, { ...options, window }, options.kernels));
  }
  return {
    bind(layer, b, cache, sinks) {
      const of = compiled.get(windows[layer]);
      if (of === undefined) throw new RangeError(`layer ${layer}: no attention was compiled`);
      const bound = of.kernels.map((kernel) =>
        kernel.bind(
          b.counts,
          b.query,
          cache,
          b.input("positions"),
          b.input("sequenceRows"),
          b.input("blockTables"),
          b.attended,
          ...(options.sinks && sinks !== undefined ? [sinks] : []),
        ),
      );
      return {
        encode(pass, sizes) {
          const runs = of.runs(sizes);
          for (const [i, kernel] of bound.entries()) if (runs[i]) kernel.encode(pass, sizes);
        },
      };
    },
  };
}

/** One kernel per step: where every row is sampled, every row is a sequence's next token. */
async function compileForSoftware(
  gpu: Gpu,
  options: Options,
  kernels: AttentionKernels,
): Promise<Compiled> {
  const compile = (tokens: AttentionOptions["tokens"]) => {
    const all = { ...options, tokens, lanes: kernels === "software" ? 32 : 128 } as const;
    return compileKernel(
      gpu,
      kernels === "software" && fitsSplits(all) ? attentionSplits(all) : attention(all),
    );
  };
  return {
    kernels: [await compile("one"), await compile("several")],
    runs: ({ tokens, samples }) => [samples === tokens, samples !== tokens],
  };
}

/** Decodes and chunks of prompts each by their own kernel, also side by side, so that a decode's bits do not depend on who else is in the batch. */
async function compileForHardware(gpu: Gpu, options: Options): Promise<Compiled> {
  const { maxComputeWorkgroupStorageSize } = gpu.device.limits;
  const wide = attentionTiles(options, { staged: 32 });
  const fits = (wide.workgroupBytes ?? 0) <= maxComputeWorkgroupStorageSize;
  return {
    kernels: [
      await compileKernel(gpu, attention({ ...options, tokens: "alone", lanes: 128 })),
      await compileKernel(gpu, fits ? wide : attentionTiles(options, { staged: 16 })),
    ],
    runs: ({ tokens, chunkTokens }) => [chunkTokens !== tokens, chunkTokens !== 0],
  };
}
