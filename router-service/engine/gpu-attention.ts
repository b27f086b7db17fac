/** The attention kernels of a model's layers: one per window and per kind of step. */

import type { Gpu } from "../../core/gpu/device.ts";
import { type BoundKernel, compileKernel, type CompiledKernel } from "../../core/gpu/kernel.ts";
import { attention, type AttentionOptions } from "../../core/gpu/kernels/attention.ts";
import { attentionSplits, fitsSplits } from "../../core/gpu/kernels/attention-splits.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** How sequences are laid out in the paged cache. */
export type AttentionBlocks = Pick<AttentionOptions, "blockSize" | "blocksPerSequence">;

/** Attention from queries and cache to results per head, for any layer. */
export interface AttentionCore {
  /** Binds a layer's; `sinks` f32 [numHeads] where the model has them. */
  bind(layer: number, b: StepBuffers, cache: GPUBuffer, sinks?: GPUBuffer): BoundKernel<StepSizes>;
}

/** Compiles attention for layers with these windows [numLayers]. Rejects with KernelError. */
export async function compileAttention(
  gpu: Gpu,
  windows: readonly (number | undefined)[],
  options: Omit<AttentionOptions, "window" | "tokens" | "lanes">,
): Promise<AttentionCore> {
  type Kernels = readonly [CompiledKernel<StepSizes>, CompiledKernel<StepSizes>];
  const { software } = gpu.offers;
  const kernels = new Map<number | undefined, Kernels>();
  for (const window of new Set(windows)) {
    const compile = (tokens: AttentionOptions["tokens"]) => {
      const all = { ...options, window, tokens, lanes: software ? 32 : 128 } as const;
      return compileKernel(
        gpu,
        software && fitsSplits(all) ? attentionSplits(all) : attention(all),
      );
    };
    kernels.set(window, [await compile("one"), await compile("several")]);
  }
  return {
    bind(layer, b, cache, sinks) {
      const of = kernels.get(windows[layer]);
      if (of === undefined) throw new RangeError(`layer ${layer}: no attention was compiled`);
      const [decode, prefill] = of.map((kernel) =>
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
          // Where every row is sampled, every row is a sequence's next token.
          const of = sizes.samples === sizes.tokens ? decode : prefill;
          of.encode(pass, sizes);
        },
      };
    },
  };
}
