/** Tensors in GPU memory. */

/** A GPU buffer with the shape and dtype of what it holds. */
export interface GpuTensor {
  readonly buffer: GPUBuffer;
  readonly shape: readonly number[];
  readonly dtype: "f32" | "f16" | "u32";
}
