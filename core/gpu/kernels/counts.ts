/** The counts that change from step to step: one uniform buffer, shared by all kernels of a step. */

/** Sizes of one step. */
export interface StepSizes {
  /** Rows of hidden states. */
  readonly tokens: number;
  /** Rows whose logits are wanted. */
  readonly samples: number;
  /** Rows that stand beside another row of their sequence, so in a chunk of a prompt; absent where nobody counted them. */
  readonly chunkTokens?: number;
  /** Experts per row. */
  readonly topK: number;
  /** Slots of the layer whose experts run. */
  readonly numSlots: number;
  /** Rows of an expert that has any; absent where nobody counted them. */
  readonly pairsPerSlot?: number;
}

/**
 * WGSL of the uniform at binding 0: StepSizes as four u32, and `zero`, which is 0. A loop that ends at a constant plus
 * `zero` has a length that compilers can not know, so that they do not unroll it whole: software Vulkan took 30 s over
 * one such loop of eight rounds.
 */
export const COUNTS = /* wgsl */ `
struct Counts { tokens: u32, samples: u32, top_k: u32, num_slots: u32, zero: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(0) var<uniform> counts: Counts;
const NONE = 0xffffffffu;`;

/** Bytes of the uniform. */
export const COUNTS_BYTES = 32;

/** The uniform's contents. */
export function countsData(sizes: StepSizes): Uint32Array<ArrayBuffer> {
  return new Uint32Array([sizes.tokens, sizes.samples, sizes.topK, sizes.numSlots, 0, 0, 0, 0]);
}

export function ceilDiv(a: number, b: number): number {
  return Math.ceil(a / b);
}
