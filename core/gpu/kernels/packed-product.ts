/** Products with rows of packed weights in registers alone: what few, fat invocations compute. */

import type { SharedInput } from "./shared-input.ts";
import { type ExpertFormat, formatLayout, rowScaleWords } from "../../expert-format.ts";

/** How a kernel multiplies by a matrix of some format with rows of K columns. */
export interface PackedProduct {
  /** Element type of the weights binding. */
  readonly element: string;
  /** WGSL of `weights8(i)`, the eights of the binding `weights`, and of `scale_of(row, group)` where there are scales. */
  readonly functions: string;
  /**
   * WGSL that multiplies the rows of a tile by four rows of weights: `acc[r]` from `row[r]`, where row r of the input
   * begins (SharedInput.rowStart), and `w_row0` … `w_row3`, the rows of weights.
   */
  readonly fourColumns: string;
}

const EIGHT = /* wgsl */ `
struct Eight { a: vec4<f32>, b: vec4<f32> }`;

const WEIGHTS_8: Readonly<Record<"f32" | "f16" | "int8" | "int4" | "mxfp4", string>> = {
  f32: /* wgsl */ `${EIGHT}
fn weights8(i: u32) -> Eight { return Eight(weights[i * 2u], weights[i * 2u + 1u]); }`,
  f16: /* wgsl */ `${EIGHT}
fn weights8(i: u32) -> Eight {
  let p = weights[i];
  return Eight(
    vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)),
    vec4<f32>(unpack2x16float(p.z), unpack2x16float(p.w)));
}`,
  int8: /* wgsl */ `${EIGHT}
fn bytes4(p: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(p) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
fn weights8(i: u32) -> Eight {
  let p = weights[i];
  return Eight(bytes4(p.x), bytes4(p.y));
}`,
  // With its top bit turned, a nibble less 8 is the nibble in two's complement.
  int4: /* wgsl */ `${EIGHT}
fn weights8(i: u32) -> Eight {
  let p = vec4<u32>(weights[i] ^ 0x88888888u);
  return Eight(
    vec4<f32>(bitcast<vec4<i32>>(p << vec4<u32>(28u, 24u, 20u, 16u)) >> vec4<u32>(28u)),
    vec4<f32>(bitcast<vec4<i32>>(p << vec4<u32>(12u, 8u, 4u, 0u)) >> vec4<u32>(28u)));
}`,
  // Exponent and mantissa of e2m1 stand where a float's do, above exponent 127: 2^e · (1 + m/2). The value is half of
  // it, and where e is 0 one less than it.
  mxfp4: /* wgsl */ `${EIGHT}
fn e2m1(p: vec4<u32>) -> vec4<f32> {
  let magnitude = p & vec4<u32>(7u);
  let f = bitcast<vec4<f32>>((magnitude << vec4<u32>(22u)) + vec4<u32>(0x3f800000u));
  let v = select(f * 0.5, f - 1.0, magnitude < vec4<u32>(2u));
  return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | ((p & vec4<u32>(8u)) << vec4<u32>(28u)));
}
fn weights8(i: u32) -> Eight {
  let p = vec4<u32>(weights[i]);
  return Eight(
    e2m1(p >> vec4<u32>(0u, 4u, 8u, 12u)),
    e2m1(p >> vec4<u32>(16u, 20u, 24u, 28u)));
}`,
};

/** Element types by the u32 that eight weights take. */
const ELEMENTS = { 8: "vec4<f32>", 4: "vec4<u32>", 2: "vec2<u32>", 1: "u32" } as const;

/** Products with matrices of a format with `k` columns, a multiple of 8. */
export function packedProduct(format: ExpertFormat, k: number, input: SharedInput): PackedProduct {
  const { bits, scaleBits, group } = formatLayout(format);
  const kind =
    format === "f32" || format === "f16" || format === "int8" || format === "mxfp4"
      ? format
      : "int4";
  const eights = k / 8;
  // One eight per round of the loop: software Vulkan compiles four of them for half a minute.
  const products = (sum: string) => /* wgsl */ `
      let w0 = weights8(at0 + i);
      let w1 = weights8(at1 + i);
      let w2 = weights8(at2 + i);
      let w3 = weights8(at3 + i);
      ${input.addEight(sum)}`;
  const scales = (g: string) =>
    `vec4<f32>(scale_of(w_row0, ${g}), scale_of(w_row1, ${g}), scale_of(w_row2, ${g}), scale_of(w_row3, ${g}))`;
  const whole = /* wgsl */ `
  for (var i = 0u; i < ${eights}u + counts.zero; i++) {
    ${products("acc")}
  }
  ${
    scaleBits === 0
      ? ""
      : /* wgsl */ `
  let scale = ${scales("0u")};
  for (var r = 0u; r < ROWS; r++) { acc[r] *= scale; }`
  }`;
  const perGroup = (group ?? k) / 8;
  const byGroups = /* wgsl */ `
  for (var g = 0u; g < ${Math.ceil(eights / perGroup)}u + counts.zero; g++) {
    var part: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) { part[r] = vec4<f32>(); }
    let end = min((g + 1u) * ${perGroup}u, ${eights}u);
    for (var i = g * ${perGroup}u; i < end; i++) {
      ${products("part")}
    }
    let scale = ${scales("g")};
    for (var r = 0u; r < ROWS; r++) { acc[r] += scale * part[r]; }
  }`;
  return {
    element: ELEMENTS[(bits / 4) as keyof typeof ELEMENTS],
    functions: WEIGHTS_8[kind] + scaleFunction(format, k),
    fourColumns: /* wgsl */ `
  let at0 = w_row0 * ${eights}u;
  let at1 = w_row1 * ${eights}u;
  let at2 = w_row2 * ${eights}u;
  let at3 = w_row3 * ${eights}u;
  var acc: array<vec4<f32>, ROWS>;
  for (var r = 0u; r < ROWS; r++) { acc[r] = vec4<f32>(); }
  ${group === undefined ? whole : byGroups}`,
  };
}

/** WGSL of `scale_of(row, group)` over the binding `scales`. */
function scaleFunction(format: ExpertFormat, k: number): string {
  const words = rowScaleWords(format, k);
  switch (formatLayout(format).scaleBits) {
    case 0:
      return "";
    case 32:
      return /* wgsl */ `
fn scale_of(row: u32, group: u32) -> f32 { return bitcast<f32>(scales[row]); }`;
    case 16:
      return /* wgsl */ `
fn scale_of(row: u32, group: u32) -> f32 {
  let pair = unpack2x16float(scales[row * ${words}u + group / 2u]);
  return select(pair.x, pair.y, group % 2u == 1u);
}`;
    case 8:
      return /* wgsl */ `
fn scale_of(row: u32, group: u32) -> f32 {
  return bitcast<f32>(((scales[row * ${words}u + group / 4u] >> (8u * (group % 4u))) & 255u) << 23u);
}`;
  }
}
