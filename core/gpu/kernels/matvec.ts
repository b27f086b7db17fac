/**
 * Matrix-vector products for few rows: the invocations of a workgroup share the columns of K among them, read every
 * weight once for all rows of a tile by the widest loads that the format allows, and add up at the end.
 *
 * A row's result does not depend on the other rows of its tile, nor on how many a tile takes: invocation t always adds up
 * loads t, t + threads, …, and the invocations' sums are added in one order.
 */

import type { PackedWeights } from "./packed-weights.ts";

/** How a matrix-vector kernel divides its work; what a measurement on the adapter chooses. */
export interface MatvecShape {
  /** Invocations of a workgroup. */
  readonly threads: 32 | 64 | 128 | 256;
  /** Outputs of a row that a workgroup computes. */
  readonly columns: 1 | 2 | 4 | 8;
  /** How the invocations' sums are added: by subgroups where the adapter offers them. */
  readonly reduce: "subgroup" | "workgroup";
}

/** Short name of a shape, for labels. */
export function matvecName({ threads, columns, reduce }: MatvecShape): string {
  return `matvec ${threads}×${columns} ${reduce}`;
}

/** Lines of WGSL, one per index. */
export function lines(count: number, line: (index: number) => string): string {
  return Array.from({ length: count }, (_, index) => line(index)).join("\n");
}

/** Smallest subgroup of any adapter. */
const MIN_SUBGROUP = 4;

/** Sums that workgroup memory holds for each of `sums` values. */
function partials(shape: MatvecShape): number {
  return shape.reduce === "subgroup" ? shape.threads / MIN_SUBGROUP : shape.threads;
}

/** Bytes of workgroup memory of a kernel with `sums` sums. */
export function matvecBytes(shape: MatvecShape, sums: number): number {
  return partials(shape) * sums * 4;
}

/** WGSL before the entry point: `total(j)`, sum number j over all invocations. */
export function matvecDeclarations(shape: MatvecShape, sums: number): string {
  return /* wgsl */ `
const THREADS = ${shape.threads}u;
const SUMS = ${sums}u;
var<workgroup> partial: array<f32, ${partials(shape) * sums}>;
fn total(j: u32, count: u32) -> f32 {
  var sum = 0.0;
  for (var g = 0u; g < count; g++) { sum += partial[g * SUMS + j]; }
  return sum;
}`;
}

/** Directives that stand before everything else. */
export const MATVEC_ENABLE = { subgroup: "enable subgroups;", workgroup: "" } as const;

/** Parameters of the entry point. */
export const MATVEC_PARAMETERS = {
  subgroup: /* wgsl */ `
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(num_subgroups) num_partials: u32,
  @builtin(subgroup_invocation_id) lane: u32,
`,
  workgroup: /* wgsl */ `
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
`,
} as const;

/**
 * WGSL that multiplies rows `row0` …, where rows of the input begin (in vec4), by matrix rows `of0` … (counted over all
 * slots), and leaves every sum in workgroup memory: sum number r · weightRows + c is of row r and matrix row c.
 * After it `num_partials` sums of each are there to be added up by `total`.
 */
export function matvecBody(
  shape: MatvecShape,
  packed: PackedWeights,
  rows: number,
  weightRows: number,
): string {
  const { eights } = packed;
  const each = (text: (r: number, c: number) => string) =>
    lines(rows * weightRows, (j) => text(Math.floor(j / weightRows), j % weightRows));
  const multiply = (e: number) => /* wgsl */ `
${lines(
  rows,
  (r) => `    let x${r}a${e} = x[row${r} + i * ${eights * 2}u + ${2 * e}u];
    let x${r}b${e} = x[row${r} + i * ${eights * 2}u + ${2 * e + 1}u];`,
)}
${lines(
  weightRows,
  (c) => `    let w${c}e${e} = eight${e}(p${c});
${lines(rows, (r) => `    s${r}_${c} += scale${c} * (dot(w${c}e${e}.a, x${r}a${e}) + dot(w${c}e${e}.b, x${r}b${e}));`)}`,
)}`;
  return /* wgsl */ `
${each((r, c) => `  var s${r}_${c} = 0.0;`)}
  for (var i = thread; i < LOADS + counts.zero; i += THREADS) {
${lines(weightRows, (c) => `    let p${c} = weights[of${c} * LOADS + i];`)}
${lines(weightRows, (c) => `    let scale${c} = load_scale(of${c}, i);`)}
${lines(eights, multiply)}
  }
${STORE[shape.reduce](rows * weightRows, (j) => `s${Math.floor(j / weightRows)}_${j % weightRows}`)}
  workgroupBarrier();`;
}

const STORE = {
  subgroup: (sums: number, name: (j: number) => string) => /* wgsl */ `
${lines(sums, (j) => `  let t${j} = subgroupAdd(${name(j)});`)}
  if (lane == 0u) {
${lines(sums, (j) => `    partial[subgroup * SUMS + ${j}u] = t${j};`)}
  }`,
  workgroup: (sums: number, name: (j: number) => string) => /* wgsl */ `
  let num_partials = THREADS;
${lines(sums, (j) => `  partial[thread * SUMS + ${j}u] = ${name(j)};`)}`,
} as const;
