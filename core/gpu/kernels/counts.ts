/** The counts that change from step to step: one uniform buffer, shared by all kernels of a step. */

/** Sizes of one step. */
export interface StepSizes {
  /** Rows of hidden states. */
  readonly tokens: number;
  /** Rows whose logits are wanted. */
  readonly samples: number;
}

/** WGSL of the uniform at binding 0: StepSizes as two u32 and padding. */
export const COUNTS = /* wgsl */ `
struct Counts { tokens: u32, samples: u32, pad0: u32, pad1: u32 }
@group(0) @binding(0) var<uniform> counts: Counts;
const NONE = 0xffffffffu;`;

/** Bytes of the uniform. */
export const COUNTS_BYTES = 16;

export function ceilDiv(a: number, b: number): number {
  return Math.ceil(a / b);
}
