/** Host tensors, and the conversions between the dtypes that checkpoints, devices and the wire use. */

/** Dtypes of checkpoint tensors that the loaders read, as safetensors names them. */
export type DType = "F32" | "F16" | "BF16";

/** A tensor in host memory, row-major and little-endian. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** Exactly the tensor's bytes; may be a misaligned view. */
  readonly bytes: Uint8Array;
}

/** A matrix [rows, columns] in MXFP4 (OCP Microscaling Formats 1.0), as checkpoints have it; columns a multiple of 32. */
export interface Mxfp4Matrix {
  readonly shape: readonly number[];
  readonly dtype: "MXFP4";
  /** [rows, columns / 2] two e2m1 codes each, that of the even column in the low half */
  readonly bytes: Uint8Array;
  /** [rows, columns / 32] s of the groups' scales 2^(s − 127); 255 is NaN */
  readonly scales: Uint8Array;
}

/** A matrix as a checkpoint has it. */
export type StoredMatrix = HostTensor | Mxfp4Matrix;

/** Largest finite f16 value. */
export const F16_MAX = 65504;

/** Bytes that one element of a dtype takes. */
export function bytesPerElement(dtype: DType): number {
  return dtype === "F32" ? 4 : 2;
}

/** Elements of a tensor of this shape; 1 of a scalar. */
export function numElements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** The same bytes at an offset that typed arrays of `alignment` bytes accept; copies only where it must. */
function alignedBytes(bytes: Uint8Array, alignment: number): Uint8Array {
  return bytes.byteOffset % alignment === 0 ? bytes : new Uint8Array(bytes);
}

/** f32 view of little-endian bytes. Throws RangeError unless their length is a multiple of 4. */
export function f32FromBytes(bytes: Uint8Array): Float32Array {
  const aligned = alignedBytes(bytes, 4);
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}

/** u16 view of little-endian bytes. Throws RangeError unless their length is a multiple of 2. */
export function u16FromBytes(bytes: Uint8Array): Uint16Array {
  const aligned = alignedBytes(bytes, 2);
  return new Uint16Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 2);
}

/** f16 view of little-endian bytes. Throws RangeError unless their length is a multiple of 2. */
export function f16FromBytes(bytes: Uint8Array): Float16Array {
  const aligned = alignedBytes(bytes, 2);
  return new Float16Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 2);
}

/** The bytes of a typed array, not copied. */
export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Values of a tensor of any dtype as f32, exactly. */
export function toF32(tensor: HostTensor): Float32Array {
  switch (tensor.dtype) {
    case "F32":
      return f32FromBytes(tensor.bytes);
    case "F16":
      return Float32Array.from(f16FromBytes(tensor.bytes));
    case "BF16": {
      const halves = u16FromBytes(tensor.bytes);
      const bits = new Uint32Array(halves.length);
      for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
      return new Float32Array(bits.buffer);
    }
  }
}

/** Values rounded to the nearest f16; beyond ±65504 they become infinite. */
export function f32ToF16(values: Float32Array): Float16Array {
  return new Float16Array(values);
}

/** Bits of f32 infinity; those of NaN are larger, without their sign. */
const INFINITY_BITS = 0x7f800000;

/** The largest magnitude among the values; NaN where one is NaN. */
export function maxMagnitude(values: Float32Array): number {
  // Without their sign, bits of floats are in the order of their magnitudes; integers compare several times faster.
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  let largest = 0;
  for (let i = 0; i < bits.length; i++) {
    const magnitude = bits[i] & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest > INFINITY_BITS ? Number.NaN : new Float32Array(Uint32Array.of(largest).buffer)[0];
}
