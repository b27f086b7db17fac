/** Weight formats as the fast matrix kernels read them: few wide loads, each of one or more *eights* of weights. */

import { type ExpertFormat, formatLayout, rowScaleWords } from "../../expert-format.ts";

/** How a kernel reads a matrix of a format. */
export interface PackedWeights {
  /** Element type of the weights binding: what one load brings. */
  readonly element: string;
  /** Eights of one load. */
  readonly eights: number;
  /** Loads of one row. */
  readonly loads: number;
  /** Whether there is a scales binding. */
  readonly scaled: boolean;
  /**
   * WGSL of `load_scale(row, i)`, what load i of a row is multiplied by; `row_scale(row)`, what a row's sum is
   * multiplied by; and `eight<e>(p)`, the eight weights number e of a load p as two vec4<f32>, not yet scaled.
   * Reads the binding `scales: array<u32>` where `scaled`.
   */
  readonly wgsl: string;
}

const EIGHT = /* wgsl */ `
struct Eight { a: vec4<f32>, b: vec4<f32> }`;

const NO_LOAD_SCALE = /* wgsl */ `
fn load_scale(row: u32, i: u32) -> f32 { return 1.0; }`;

const NO_ROW_SCALE = /* wgsl */ `
fn row_scale(row: u32) -> f32 { return 1.0; }`;

/** Words of one load: as many as divide a row's words, at most four. */
function loadWords(words: number): 1 | 2 | 4 {
  return words % 4 === 0 ? 4 : words % 2 === 0 ? 2 : 1;
}

const PARTS = {
  1: ["p"],
  2: ["p.x", "p.y"],
  4: ["p.x", "p.y", "p.z", "p.w"],
} as const;

/** WGSL type of a load of so many u32. */
function wordsType(words: 1 | 2 | 4): string {
  return words === 1 ? "u32" : `vec${words}<u32>`;
}

/** One function per eight of a load. */
function eightFunctions(type: string, bodies: readonly string[]): string {
  return bodies
    .map((body, e) => `fn eight${e}(p: ${type}) -> Eight { return ${body}; }`)
    .join("\n");
}

/** How kernels read matrices with rows of `k` weights, k a multiple of 8. */
export function packedWeights(format: ExpertFormat, k: number): PackedWeights {
  switch (format) {
    case "f32":
      return {
        element: "Eight",
        eights: 1,
        loads: k / 8,
        scaled: false,
        wgsl: `${EIGHT}${NO_LOAD_SCALE}${NO_ROW_SCALE}
fn eight0(p: Eight) -> Eight { return p; }`,
      };
    case "f16":
      return {
        element: "vec4<u32>",
        eights: 1,
        loads: k / 8,
        scaled: false,
        wgsl: `${EIGHT}${NO_LOAD_SCALE}${NO_ROW_SCALE}
fn eight0(p: vec4<u32>) -> Eight {
  return Eight(
    vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)),
    vec4<f32>(unpack2x16float(p.z), unpack2x16float(p.w)));
}`,
      };
    case "int8": {
      const words = k % 16 === 0 ? 4 : 2;
      const pairs = words === 4 ? ["p.x, p.y", "p.z, p.w"] : ["p.x, p.y"];
      return {
        element: wordsType(words),
        eights: words / 2,
        loads: k / (4 * words),
        scaled: true,
        wgsl: `${EIGHT}${NO_LOAD_SCALE}
fn row_scale(row: u32) -> f32 { return bitcast<f32>(scales[row]); }
fn bytes8(low: u32, high: u32) -> Eight {
  return Eight(vec4<f32>(unpack4xI8(low)), vec4<f32>(unpack4xI8(high)));
}
${eightFunctions(
  wordsType(words),
  pairs.map((pair) => `bytes8(${pair})`),
)}`,
      };
    }
    case "int4-g32":
    case "int4-g64":
    case "int4-g128":
      return fourBits(format, k, INT4_EIGHT, HALF_SCALE);
    case "mxfp4":
      return fourBits(format, k, MXFP4_EIGHT, EXPONENT_SCALE);
  }
}

/**
 * A nibble n at bits 6 to 9 of an f16 whose exponent says 16 is 16 + n: two nibbles become two floats by one shift, one
 * mask and one unpack, where converting integers takes a conversion each, at a quarter of the rate on many GPUs.
 */
const INT4_EIGHT = /* wgsl */ `
fn nibbles8(w: u32) -> Eight {
  let p0 = unpack2x16float(((w << 6u) & 0x03c003c0u) | 0x4c004c00u);
  let p1 = unpack2x16float(((w << 2u) & 0x03c003c0u) | 0x4c004c00u);
  let p2 = unpack2x16float(((w >> 2u) & 0x03c003c0u) | 0x4c004c00u);
  let p3 = unpack2x16float(((w >> 6u) & 0x03c003c0u) | 0x4c004c00u);
  return Eight(vec4<f32>(p0.x, p1.x, p2.x, p3.x) - 24.0, vec4<f32>(p0.y, p1.y, p2.y, p3.y) - 24.0);
}`;

/** e2m1 doubled is a small integer: the magnitude's three bits look it up in the nibbles of one constant. */
const MXFP4_EIGHT = /* wgsl */ `
fn doubled(w: u32, at: vec4<u32>) -> vec4<f32> {
  let n = vec4<u32>(w) >> at;
  let magnitude = vec4<f32>((vec4<u32>(0xc8643210u) >> ((n & vec4<u32>(7u)) << vec4<u32>(2u))) & vec4<u32>(15u));
  return select(magnitude, -magnitude, (n & vec4<u32>(8u)) != vec4<u32>());
}
fn nibbles8(w: u32) -> Eight {
  return Eight(doubled(w, vec4<u32>(0u, 4u, 8u, 12u)), doubled(w, vec4<u32>(16u, 20u, 24u, 28u)));
}`;

/** A group's scale in f16, two to a word. */
const HALF_SCALE = /* wgsl */ `
  return unpack2x16float(word >> (16u * (group % 2u))).x;`;

/** A group's power of two as an exponent's byte, four to a word; half of it, as the weights come doubled. */
const EXPONENT_SCALE = /* wgsl */ `
  return 0.5 * bitcast<f32>(((word >> (8u * (group % 4u))) & 0xffu) << 23u);`;

function fourBits(
  format: ExpertFormat,
  k: number,
  eight: string,
  readScale: string,
): PackedWeights {
  const words = loadWords(k / 8);
  const perWord = format === "mxfp4" ? 4 : 2;
  return {
    element: wordsType(words),
    eights: words,
    loads: k / 8 / words,
    scaled: true,
    wgsl: `${EIGHT}${NO_ROW_SCALE}
fn load_scale(row: u32, i: u32) -> f32 {
  let group = i * ${words * 8}u / ${formatLayout(format).group}u;
  let word = scales[row * ${rowScaleWords(format, k)}u + group / ${perWord}u];${readScale}
}
${eight}
${eightFunctions(
  wordsType(words),
  PARTS[words].map((part) => `nibbles8(${part})`),
)}`,
  };
}
