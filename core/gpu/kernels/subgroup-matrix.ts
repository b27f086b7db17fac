/**
 * Tiled matrix products by subgroup matrices (tensor cores): tiles in f16, sums in f32. Each row of the input is scaled by
 * a power of two so that its largest value is near 2^13: no row is too large for f16, and none is lost below it.
 *
 * A row's result does not depend on the other rows of its tile. The order in which the hardware adds is its own.
 */

import type { AdapterOffers, SubgroupMatrixConfig } from "../device.ts";
import { ceilDiv, type StepSizes } from "./counts.ts";
import { lines } from "./matvec.ts";
import type { PackedWeights } from "./packed-weights.ts";
import type { GroupRows } from "./tile.ts";

/** How a kernel of subgroup matrices divides its work; what a measurement on the adapter chooses. */
export interface SubgroupMatrixShape {
  /** Shape of one matrix of the adapter's. */
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly subgroupSize: number;
  /** Subgroups along matrix rows and along rows of the input. */
  readonly subgroups: readonly [x: 1 | 2 | 4, y: 1 | 2 | 4];
  /** Matrices of a subgroup along matrix rows (even) and along rows of the input. */
  readonly block: readonly [columns: 2 | 4, rows: 1 | 2 | 4];
}

/** Columns of K that a round brings. */
const DEPTH = 32;

/** f16 of a row of a tile; more than a round needs, so that neighbouring rows lie in other banks. */
const STRIDE = DEPTH + 8;

/** Rows of the input that a workgroup takes. */
export function subgroupMatrixRows({ M, subgroups, block }: SubgroupMatrixShape): GroupRows {
  return (M * subgroups[1] * block[1]) as GroupRows;
}

/** Matrix rows that a workgroup takes. */
export function subgroupMatrixColumns({ N, subgroups, block }: SubgroupMatrixShape): number {
  return N * subgroups[0] * block[0];
}

/** Short name of a shape, for labels. */
export function subgroupMatrixName(shape: SubgroupMatrixShape): string {
  const { M, N, K, subgroups } = shape;
  return `matrices ${M}·${N}·${K} ${subgroupMatrixRows(shape)}×${subgroupMatrixColumns(shape)} by ${subgroups.join("·")}`;
}

/** Invocations of a workgroup. */
export function subgroupMatrixThreads({ subgroups, subgroupSize }: SubgroupMatrixShape): number {
  return subgroups[0] * subgroups[1] * subgroupSize;
}

/** Matrices of results that a subgroup lays down at once: of gate-up, gate and up. */
export type ResultsAtOnce = 1 | 2;

/** Bytes of workgroup memory. */
export function subgroupMatrixBytes(shape: SubgroupMatrixShape, atOnce: ResultsAtOnce): number {
  const { M, N, subgroups } = shape;
  const rows = subgroupMatrixRows(shape) + subgroupMatrixColumns(shape);
  const results = subgroups[0] * subgroups[1] * atOnce * M * N;
  return rows * STRIDE * 2 + results * 4 + subgroupMatrixRows(shape) * 8;
}

/** A configuration that the kernels can use: f16 products, f32 sums, whole rounds. */
function usable({ componentType, resultComponentType, M, N, K }: SubgroupMatrixConfig): boolean {
  const types = componentType === "f16" && resultComponentType === "f32";
  return types && DEPTH % K === 0 && 32 % M === 0 && 32 % N === 0;
}

/** The shapes for an adapter, small tiles first; none where subgroups may come in several sizes or have no such matrices. */
export function subgroupMatrixShapes(
  offers: AdapterOffers,
  workgroupThreads: number,
): SubgroupMatrixShape[] {
  const { minSubgroupSize, maxSubgroupSize: subgroupSize } = offers;
  if (minSubgroupSize !== subgroupSize || !offers.shaderF16) return [];
  const config = offers.subgroupMatrix
    .filter(usable)
    .toSorted((a, b) => b.M * b.N * b.K - a.M * a.N * a.K)[0];
  if (config === undefined) return [];
  const { M, N, K } = config;
  const divisions = [
    { subgroups: [2, 1], block: [2, 2] },
    { subgroups: [2, 2], block: [2, 2] },
    { subgroups: [2, 2], block: [4, 2] },
    { subgroups: [4, 2], block: [2, 4] },
  ] as const;
  return divisions
    .map(({ subgroups, block }): SubgroupMatrixShape => ({
      M,
      N,
      K,
      subgroupSize,
      subgroups,
      block,
    }))
    .filter(
      (shape) =>
        subgroupMatrixThreads(shape) <= workgroupThreads && subgroupMatrixRows(shape) <= 128,
    );
}

/** Workgroups for so many matrix rows and tiles. */
export function subgroupMatrixGrid(
  shape: SubgroupMatrixShape,
  matrixRows: number,
  tiles: (step: StepSizes) => number,
): (step: StepSizes) => readonly [number, number, number] {
  return (step) => [ceilDiv(matrixRows, subgroupMatrixColumns(shape)), tiles(step), 1];
}

/** Directives that stand before everything else. */
export const SUBGROUP_MATRIX_ENABLE = /* wgsl */ `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;`;

/** Parameters of the entry point. */
export const SUBGROUP_MATRIX_PARAMETERS = /* wgsl */ `
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32,
`;

/** WGSL before the entry point; wants `x`, `weights` and the format's functions declared. `k` columns. */
export function subgroupMatrixDeclarations(
  shape: SubgroupMatrixShape,
  packed: PackedWeights,
  k: number,
  atOnce: ResultsAtOnce,
): string {
  const { M, N, K, subgroups, block, subgroupSize } = shape;
  const rows = subgroupMatrixRows(shape);
  const columns = subgroupMatrixColumns(shape);
  return /* wgsl */ `
alias Left = subgroup_matrix_left<f16, ${K}, ${M}>;
alias Right = subgroup_matrix_right<f16, ${N}, ${K}>;
alias Result = subgroup_matrix_result<f32, ${N}, ${M}>;
const SUBGROUP = ${subgroupSize}u;
const THREADS = ${subgroupMatrixThreads(shape)}u;
const SUBGROUPS_X = ${subgroups[0]}u;
const TILE_ROWS = ${rows}u;
const TILE_COLUMNS = ${columns}u;
const SUBGROUP_ROWS = ${M * block[1]}u;
const SUBGROUP_COLUMNS = ${N * block[0]}u;
const STRIDE = ${STRIDE}u;
const DEPTH4 = ${DEPTH / 4}u;
const X4 = ${k / 4}u;
const LOADS = ${packed.loads}u;
const ROUND_LOADS = ${DEPTH / 8 / packed.eights}u;
const ROUNDS = ${ceilDiv(k, DEPTH)}u;
const RESULT = ${M * N}u;
var<workgroup> row_tile: array<f16, ${rows * STRIDE}>;
var<workgroup> weight_tile: array<f16, ${columns * STRIDE}>;
var<workgroup> results: array<f32, ${subgroups[0] * subgroups[1] * atOnce * M * N}>;
var<workgroup> row_at: array<u32, ${rows}>;
var<workgroup> row_factor: array<f32, ${rows}>;
/// One over a power of two, exactly.
fn inverse(power: f32) -> f32 { return bitcast<f32>((254u << 23u) - bitcast<u32>(power)); }
fn put_weights(at: u32, scale: f32, w: Eight) {
  let a = vec4<f16>(scale * w.a);
  let b = vec4<f16>(scale * w.b);
${lines(4, (i) => `  weight_tile[at + ${i}u] = a[${i}];\n  weight_tile[at + ${4 + i}u] = b[${i}];`)}
}`;
}

/**
 * WGSL that leaves in `c<r>_<c>` the products of a subgroup's rows and matrix rows; wants `row_at` filled with where rows
 * begin (in vec4) or NONE, and an expression for the matrix row (counted over all slots) with number `n`. What comes out
 * for row m is to be multiplied by `row_factor[m]`.
 */
export function subgroupMatrixBody(
  shape: SubgroupMatrixShape,
  packed: PackedWeights,
  weightRow: string,
): string {
  const { M, N, K, block } = shape;
  const [columns, rows] = block;
  return /* wgsl */ `
  workgroupBarrier();
  // One subgroup per row finds its largest magnitude: the exponents' bits order as the values do.
  for (var m = subgroup; m < TILE_ROWS; m += THREADS / SUBGROUP) {
    let begin = row_at[m];
    var largest = 0u;
    if (begin != NONE) {
      for (var i = lane; i < X4; i += SUBGROUP) {
        let bits = bitcast<vec4<u32>>(x[begin + i]) & vec4<u32>(0x7fffffffu);
        largest = max(largest, max(max(bits.x, bits.y), max(bits.z, bits.w)));
      }
    }
    let exponent = clamp(subgroupMax(largest) >> 23u, 14u, 254u);
    if (lane == 0u) { row_factor[m] = bitcast<f32>((exponent - 13u) << 23u); }
  }
${lines(rows * columns, (j) => `  var c${Math.floor(j / columns)}_${j % columns} = Result();`)}
  let row0 = subgroup / SUBGROUPS_X * SUBGROUP_ROWS;
  let column0 = subgroup % SUBGROUPS_X * SUBGROUP_COLUMNS;
  workgroupBarrier();
  for (var round = 0u; round < ROUNDS + counts.zero; round++) {
    for (var t = thread; t < TILE_ROWS * DEPTH4; t += THREADS) {
      let m = t / DEPTH4;
      let begin = row_at[m];
      let i = round * DEPTH4 + t % DEPTH4;
      var v = vec4<f16>();
      if (begin != NONE && i < X4) { v = vec4<f16>(x[begin + i] * inverse(row_factor[m])); }
      let to = m * STRIDE + t % DEPTH4 * 4u;
${lines(4, (i) => `      row_tile[to + ${i}u] = v[${i}];`)}
    }
    for (var t = thread; t < TILE_COLUMNS * ROUND_LOADS; t += THREADS) {
      let n = t / ROUND_LOADS;
      let i = round * ROUND_LOADS + t % ROUND_LOADS;
      let to = n * STRIDE + t % ROUND_LOADS * ${8 * packed.eights}u;
      let matrix_row = ${weightRow};
      if (i < LOADS) {
        let p = weights[matrix_row * LOADS + i];
        let scale = load_scale(matrix_row, i);
${lines(packed.eights, (e) => `        put_weights(to + ${8 * e}u, scale, eight${e}(p));`)}
      } else {
${lines(packed.eights, (e) => `        put_weights(to + ${8 * e}u, 0.0, Eight());`)}
      }
    }
    workgroupBarrier();
${lines(
  DEPTH / K,
  (q) => `    {
${lines(rows, (r) => `      let a${r} = subgroupMatrixLoad<Left, row_major>(&row_tile, (row0 + ${r * M}u) * STRIDE + ${q * K}u, STRIDE);`)}
${lines(
  columns,
  (
    c,
  ) => `      let b${c} = subgroupMatrixLoad<Right, col_major>(&weight_tile, (column0 + ${c * N}u) * STRIDE + ${q * K}u, STRIDE);
${lines(rows, (r) => `      c${r}_${c} = subgroupMatrixMultiplyAccumulate(a${r}, b${c}, c${r}_${c});`)}`,
)}
    }`,
)}
    workgroupBarrier();
  }`;
}

/** WGSL that lays a matrix of results down as number `index` of the subgroup's; a barrier must follow. */
export function layDown(name: string, atOnce: ResultsAtOnce, index: number, N: number): string {
  return `  subgroupMatrixStore<row_major>(&results, (subgroup * ${atOnce}u + ${index}u) * RESULT, ${name}, ${N}u);`;
}
