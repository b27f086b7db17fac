/**
 * Tiled matrix products for many rows: a workgroup brings a piece of its rows and of its matrix rows to workgroup
 * memory, dequantised, and each invocation multiplies a block of them in registers. Sums are f32.
 *
 * A row's result does not depend on the other rows of its tile: it adds up along K from the first column to the last.
 */

import type { StepSizes } from "./counts.ts";
import { ceilDiv } from "./counts.ts";
import { lines } from "./matvec.ts";
import type { PackedWeights } from "./packed-weights.ts";
import type { GroupRows } from "./tile.ts";

/** How a tiled kernel divides its work; what a measurement on the adapter chooses. */
export interface GemmShape {
  /** Invocations of a workgroup along matrix rows and along rows of the input. */
  readonly threads: readonly [x: 8 | 16, y: 8 | 16];
  /** Outputs of an invocation along matrix rows (even) and along rows of the input. */
  readonly block: readonly [columns: 2 | 4 | 8, rows: 2 | 4 | 8];
  /** What tiles are kept in; f16 needs shader-f16 and rounds inputs and weights. */
  readonly tile: "f32" | "f16";
}

/** Rows of the input that a workgroup takes: the rows of the tiles that group-by-slot has to make. */
export function gemmRows({ threads, block }: GemmShape): GroupRows {
  return (threads[1] * block[1]) as GroupRows;
}

/** Matrix rows that a workgroup takes. */
export function gemmColumns({ threads, block }: GemmShape): number {
  return threads[0] * block[0];
}

/** Short name of a shape, for labels. */
export function gemmName(shape: GemmShape): string {
  return `gemm ${gemmRows(shape)}×${gemmColumns(shape)} by ${shape.threads.join("·")} ${shape.tile}`;
}

/** Columns of K that a round brings. */
const GEMM_DEPTH = 32;

/** Elements of a row of a tile in vec4; one more than a round needs, so that neighbouring rows lie in other banks. */
const STRIDE = GEMM_DEPTH / 4 + 1;

/** Bytes of workgroup memory. */
export function gemmBytes(shape: GemmShape): number {
  const rows = gemmRows(shape) + gemmColumns(shape);
  return rows * STRIDE * (shape.tile === "f16" ? 8 : 16) + gemmRows(shape) * 4;
}

/** Workgroups for so many matrix rows and tiles of each matrix. */
export function gemmGrid(
  shape: GemmShape,
  matrixRows: number,
  tiles: (step: StepSizes) => number,
  matrices = 1,
): (step: StepSizes) => readonly [number, number, number] {
  return (step) => [ceilDiv(matrixRows, gemmColumns(shape)), tiles(step), matrices];
}

/** Directives that stand before everything else. */
export const GEMM_ENABLE = { f32: "", f16: "enable f16;" } as const;

/** WGSL before the entry point; wants `x`, `weights` and the format's functions declared. `k` columns. */
export function gemmDeclarations(shape: GemmShape, packed: PackedWeights, k: number): string {
  const [threadsX, threadsY] = shape.threads;
  return /* wgsl */ `
alias Four = vec4<${shape.tile}>;
const THREADS_X = ${threadsX}u;
const THREADS_Y = ${threadsY}u;
const THREADS = ${threadsX * threadsY}u;
const TILE_ROWS = ${gemmRows(shape)}u;
const TILE_COLUMNS = ${gemmColumns(shape)}u;
const STRIDE = ${STRIDE}u;
const DEPTH4 = ${GEMM_DEPTH / 4}u;
const X4 = ${k / 4}u;
const LOADS = ${packed.loads}u;
const ROUND_LOADS = ${GEMM_DEPTH / 8 / packed.eights}u;
const ROUNDS = ${ceilDiv(k, GEMM_DEPTH)}u;
var<workgroup> row_tile: array<Four, ${gemmRows(shape) * STRIDE}>;
var<workgroup> weight_tile: array<Four, ${gemmColumns(shape) * STRIDE}>;
var<workgroup> row_at: array<u32, ${gemmRows(shape)}>;`;
}

/** Parameters of the entry point. */
export const GEMM_PARAMETERS = /* wgsl */ `
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
  @builtin(local_invocation_id) at: vec3<u32>,
`;

/**
 * WGSL that leaves in `s<r>_<c>` the products of row r · THREADS_Y + at.y of the tile and matrix row number
 * c · THREADS_X + at.x of the workgroup's; wants `row_at` filled with where rows begin (in vec4) or NONE, and an
 * expression for the matrix row (counted over all slots) with number `n`.
 */
export function gemmBody(shape: GemmShape, packed: PackedWeights, weightRow: string): string {
  const [columns, rows] = shape.block;
  const each = (text: (r: number, c: number) => string) =>
    lines(rows * columns, (j) => text(Math.floor(j / columns), j % columns));
  return /* wgsl */ `
${each((r, c) => `  var s${r}_${c} = 0.0;`)}
  workgroupBarrier();
  for (var round = 0u; round < ROUNDS + counts.zero; round++) {
    for (var t = thread; t < TILE_ROWS * DEPTH4; t += THREADS) {
      let begin = row_at[t / DEPTH4];
      let i = round * DEPTH4 + t % DEPTH4;
      var v = vec4<f32>();
      if (begin != NONE && i < X4) { v = x[begin + i]; }
      row_tile[t / DEPTH4 * STRIDE + t % DEPTH4] = Four(v);
    }
    for (var t = thread; t < TILE_COLUMNS * ROUND_LOADS; t += THREADS) {
      let n = t / ROUND_LOADS;
      let i = round * ROUND_LOADS + t % ROUND_LOADS;
      let to = n * STRIDE + t % ROUND_LOADS * ${2 * packed.eights}u;
      let matrix_row = ${weightRow};
      if (i < LOADS) {
        let p = weights[matrix_row * LOADS + i];
        let scale = load_scale(matrix_row, i);
${lines(
  packed.eights,
  (e) => `        let w${e} = eight${e}(p);
        weight_tile[to + ${2 * e}u] = Four(scale * w${e}.a);
        weight_tile[to + ${2 * e + 1}u] = Four(scale * w${e}.b);`,
)}
      } else {
${lines(2 * packed.eights, (j) => `        weight_tile[to + ${j}u] = Four();`)}
      }
    }
    workgroupBarrier();
    for (var q = 0u; q < DEPTH4 + counts.zero; q++) {
${lines(rows, (r) => `      let x${r} = vec4<f32>(row_tile[(${r}u * THREADS_Y + at.y) * STRIDE + q]);`)}
${lines(
  columns,
  (c) => `      let w${c} = vec4<f32>(weight_tile[(${c}u * THREADS_X + at.x) * STRIDE + q]);
${lines(rows, (r) => `      s${r}_${c} += dot(x${r}, w${c});`)}`,
)}
    }
    workgroupBarrier();
  }`;
}
