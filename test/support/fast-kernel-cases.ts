/** The matrix kernels for real GPUs, against the plain loops, in every weight format. */

import { test } from "node:test";

import { activate, SILU } from "../../core/cpu/activation.ts";
import * as cpu from "../../core/cpu/operations.ts";
import type { ExpertSizes } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import type { Kernel } from "../../core/gpu/kernel.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { gemmDown } from "../../core/gpu/kernels/gemm-down.ts";
import { gemmGateUp } from "../../core/gpu/kernels/gemm-gate-up.ts";
import { gemmLinear } from "../../core/gpu/kernels/gemm-linear.ts";
import { gemmRows, type GemmShape } from "../../core/gpu/kernels/gemm.ts";
import { groupBySlot } from "../../core/gpu/kernels/group-by-slot.ts";
import { matvecDown } from "../../core/gpu/kernels/matvec-down.ts";
import { matvecGateUp } from "../../core/gpu/kernels/matvec-gate-up.ts";
import type { LinearEpilogue } from "../../core/gpu/kernels/linear.ts";
import { matvecLinear } from "../../core/gpu/kernels/matvec-linear.ts";
import type { MatvecShape } from "../../core/gpu/kernels/matvec.ts";
import { subgroupMatrixDown } from "../../core/gpu/kernels/subgroup-matrix-down.ts";
import { subgroupMatrixGateUp } from "../../core/gpu/kernels/subgroup-matrix-gate-up.ts";
import {
  subgroupMatrixRows,
  type SubgroupMatrixShape,
} from "../../core/gpu/kernels/subgroup-matrix.ts";
import { type GroupRows, groupStride, maxGroupedTiles } from "../../core/gpu/kernels/tile.ts";
import { assertClose, randomValues, readF32, runKernel, zeros } from "./gpu-fixture.ts";
import { randomRouting } from "./matrix-kernel-cases.ts";
import { randomMatrix } from "./packed-matrix.ts";

const NONE = 0xffffffff;

/** Where the slots of a layer lie in the bank under test: out of order, and one in another bank. */
const PLACES = [2, NONE, 0, 1];

/** Rows of a batch with routing over the slots; some rows have fewer experts here than topK. */
const STEP: StepSizes = { tokens: 37, samples: 0, topK: 3, numSlots: PLACES.length };

/** Both kernels of an expert FFN. */
interface ExpertKernels {
  readonly gateUp: Kernel<StepSizes>;
  readonly down: Kernel<StepSizes>;
  /** Rows of the tiles that they read; 1: the routing itself. */
  readonly tileRows: 1 | GroupRows;
}

/** Sizes of one case; widths that take the wide, the half and the narrow loads of a format, with partial groups. */
const PLAIN = { hiddenSize: 96, expertIntermediateSize: 80, activation: SILU, expertBias: false };
const BIASED: ExpertSizes = {
  hiddenSize: 72,
  expertIntermediateSize: 40,
  activation: { kind: "clampedSwiglu", alpha: 1.702, limit: 0.5 },
  expertBias: true,
};

/** A bank's weights, and what they stand for. */
function randomBank({ hiddenSize, expertIntermediateSize }: ExpertSizes, format: ExpertFormat) {
  const held = PLACES.length - 1;
  return {
    gateUp: randomMatrix(format, held * 2 * expertIntermediateSize, hiddenSize, 12),
    gateUpBiases: randomValues(held * 2 * expertIntermediateSize, 14),
    down: randomMatrix(format, held * hiddenSize, expertIntermediateSize, 13),
    downBiases: randomValues(held * hiddenSize, 15),
  };
}

/** What both halves of the FFN should give, [numPairs, …]; pairs without a slot in the bank stay 0. */
function expectedOf(
  { hiddenSize, expertIntermediateSize: width, activation, expertBias }: ExpertSizes,
  bank: ReturnType<typeof randomBank>,
  x: Float32Array,
  slots: Uint32Array,
) {
  const inner = new Float32Array(slots.length * width);
  const results = new Float32Array(slots.length * hiddenSize);
  const part = (values: Float32Array, place: number, size: number) =>
    values.subarray(place * size, (place + 1) * size);
  slots.forEach((slot, pair) => {
    const place = slot === NONE ? NONE : PLACES[slot];
    if (place === NONE) return;
    const both = cpu.linear(
      part(x, Math.floor(pair / STEP.topK), hiddenSize),
      part(bank.gateUp.exact, place, 2 * width * hiddenSize),
      hiddenSize,
      expertBias ? part(bank.gateUpBiases, place, 2 * width) : undefined,
    );
    const states = part(inner, pair, width);
    for (let i = 0; i < width; i++) states[i] = activate(activation, both[i], both[width + i]);
    const y = cpu.linear(
      states,
      part(bank.down.exact, place, hiddenSize * width),
      width,
      expertBias ? part(bank.downBiases, place, hiddenSize) : undefined,
    );
    results.set(y, pair * hiddenSize);
  });
  return { inner, results };
}

/** The tiles of a batch as group-by-slot makes them. */
async function groupedTiles(gpu: Gpu, rows: GroupRows, routing: Uint32Array): Promise<GPUBuffer> {
  const tiles = maxGroupedTiles(STEP.tokens, STEP.topK, STEP.numSlots, rows);
  const buffer = allocate(gpu, "tiles", tiles * groupStride(rows) * 4, STORAGE);
  await runKernel(gpu, groupBySlot(rows), STEP, [routing, buffer]);
  return buffer;
}

/** Checks both halves of an expert FFN; the second reads the expected states of the first. */
async function checkExperts(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  { gateUp, down, tileRows }: ExpertKernels,
  tolerance: number,
): Promise<void> {
  const bank = randomBank(sizes, format);
  const x = randomValues(STEP.tokens * sizes.hiddenSize, 10);
  const { slots, interleaved } = randomRouting(STEP.tokens, STEP.topK, STEP.numSlots, 11);
  const expected = expectedOf(sizes, bank, x, slots);
  const tiles = tileRows === 1 ? interleaved : await groupedTiles(gpu, tileRows, interleaved);
  const places = Uint32Array.from(PLACES);
  const inner = zeros(gpu, expected.inner.length);
  await runKernel(gpu, gateUp, STEP, [
    x,
    bank.gateUp.weights,
    inner,
    tiles,
    bank.gateUp.scales,
    places,
    bank.gateUpBiases,
  ]);
  assertClose(await readF32(gpu, inner, expected.inner.length), expected.inner, tolerance);
  const results = zeros(gpu, expected.results.length);
  await runKernel(gpu, down, STEP, [
    expected.inner,
    bank.down.weights,
    results,
    tiles,
    bank.down.scales,
    places,
    bank.downBiases,
  ]);
  assertClose(await readF32(gpu, results, expected.results.length), expected.results, tolerance);
}

function matvecs(
  sizes: ExpertSizes,
  format: ExpertFormat,
  tileRows: 1 | 2,
  shape: MatvecShape,
): ExpertKernels {
  const lookup =
    tileRows === 1
      ? ({ kind: "direct", rows: 1 } as const)
      : ({ kind: "grouped", rows: tileRows } as const);
  return {
    gateUp: matvecGateUp(sizes, format, lookup, shape),
    down: matvecDown(sizes, format, lookup, shape),
    tileRows,
  };
}

function gemms(sizes: ExpertSizes, format: ExpertFormat, shape: GemmShape): ExpertKernels {
  return {
    gateUp: gemmGateUp(sizes, format, shape),
    down: gemmDown(sizes, format, shape),
    tileRows: gemmRows(shape),
  };
}

/**
 * The same kernel with subgroup matrices in plain WGSL, each invocation computing all of each matrix: proves everything
 * but the hardware's own products.
 */
function emulated(
  kernel: Kernel<StepSizes>,
  { M, N, K }: Pick<SubgroupMatrixShape, "M" | "N" | "K">,
): Kernel<StepSizes> {
  const types = /* wgsl */ `
struct Left { v: array<f32, ${M * K}> }
struct Right { v: array<f32, ${K * N}> }
struct Result { v: array<f32, ${M * N}> }`;
  const functions = /* wgsl */ `
fn load_left(at: u32, stride: u32) -> Left {
  var m: Left;
  for (var i = 0u; i < ${M * K}u + counts.zero; i++) { m.v[i] = f32(row_tile[at + i / ${K}u * stride + i % ${K}u]); }
  return m;
}
fn load_right(at: u32, stride: u32) -> Right {
  var m: Right;
  for (var i = 0u; i < ${K * N}u + counts.zero; i++) { m.v[i] = f32(weight_tile[at + i % ${N}u * stride + i / ${N}u]); }
  return m;
}
fn multiply(a: Left, b: Right, c: Result) -> Result {
  var m = c;
  for (var i = 0u; i < ${M * N}u + counts.zero; i++) {
    for (var k = 0u; k < ${K}u + counts.zero; k++) { m.v[i] += a.v[i / ${N}u * ${K}u + k] * b.v[k * ${N}u + i % ${N}u]; }
  }
  return m;
}
fn store_result(at: u32, m: Result, stride: u32) {
  for (var i = 0u; i < ${M * N}u + counts.zero; i++) { results[at + i / ${N}u * stride + i % ${N}u] = m.v[i]; }
}
@compute`;
  const wgsl = kernel.wgsl
    .replace("enable chromium_experimental_subgroup_matrix;", "")
    .replace(/alias Left[^]*?alias Result[^;]*;/, types)
    .replaceAll("subgroupMatrixLoad<Left, row_major>(&row_tile, ", "load_left(")
    .replaceAll("subgroupMatrixLoad<Right, col_major>(&weight_tile, ", "load_right(")
    .replaceAll("subgroupMatrixMultiplyAccumulate(", "multiply(")
    .replaceAll("subgroupMatrixStore<row_major>(&results, ", "store_result(")
    .replace("@compute", functions);
  return { ...kernel, label: `emulated ${kernel.label}`, wgsl };
}

/** Declares the cases on an open device; software adapters take seconds to compile some of them. */
export function fastKernelCases(gpu: Gpu, formats: readonly ExpertFormat[]): void {
  const reduce = gpu.offers.subgroups ? "subgroup" : "workgroup";
  const bySubgroups: MatvecShape = { threads: 32, columns: 2, reduce };
  const byWorkgroup: MatvecShape = { threads: 64, columns: 2, reduce: "workgroup" };
  const gemm: GemmShape = { threads: [8, 8], block: [2, 2], tile: "f32" };
  for (const format of formats) {
    test(`matvec workgroup ${format}: experts of 72→40 with biases, row by row`, () =>
      checkExperts(gpu, BIASED, format, matvecs(BIASED, format, 1, byWorkgroup), 1e-5));
    test(`gemm ${format}: experts of 96→80`, () =>
      checkExperts(gpu, PLAIN, format, gemms(PLAIN, format, gemm), 1e-5));
  }
  test(`matvec ${reduce} f16: experts of 96→80, two rows at once`, () =>
    checkExperts(gpu, PLAIN, "f16", matvecs(PLAIN, "f16", 2, bySubgroups), 1e-5));
  test("gemm f16: experts of 72→40 with biases", () =>
    checkExperts(gpu, BIASED, "f16", gemms(BIASED, "f16", gemm), 1e-5));
  if (gpu.offers.shaderF16) {
    const matrices: SubgroupMatrixShape = {
      M: 4,
      N: 4,
      K: 16,
      subgroupSize: gpu.offers.maxSubgroupSize,
      subgroups: [2, 2],
      block: [2, 1],
    };
    const deep = { ...matrices, K: 32 };
    test("subgroup matrices, emulated: experts of 72→40 with biases in int4-g32", () => {
      const kernels: ExpertKernels = {
        gateUp: emulated(subgroupMatrixGateUp(BIASED, "int4-g32", matrices), matrices),
        down: emulated(subgroupMatrixDown(BIASED, "int4-g32", deep), deep),
        tileRows: subgroupMatrixRows(matrices),
      };
      return checkExperts(gpu, BIASED, "int4-g32", kernels, 2e-3);
    });
    test("gemm over tiles in f16 gives f16's accuracy", () =>
      checkExperts(gpu, PLAIN, "f16", gemms(PLAIN, "f16", { ...gemm, tile: "f16" }), 2e-3));
  }

  const [tokens, k, n, stride] = [37, 104, 70, 72];
  const sizes = { tokens, samples: tokens, topK: 1, numSlots: 1 };
  const product = { k, n, stride, format: "f16", factor: 0.5 } as const;
  const multiplied = (epilogue: LinearEpilogue) =>
    matvecLinear({
      ...product,
      epilogue,
      shape: byWorkgroup,
      lookup: { kind: "tokens", rows: 2 },
    });
  const gemmed = (epilogue: LinearEpilogue) =>
    gemmLinear({ ...product, rows: "samples", epilogue, shape: gemm });
  for (const [epilogue, linear] of [
    ["storeBiased", gemmed],
    ["addBiased", multiplied],
    ["add", multiplied],
    ["addScaled", gemmed],
  ] as const) {
    const kernel = linear(epilogue);
    test(`${kernel.label}: ${tokens} rows, part of wider ones`, async () => {
      const x = randomValues(tokens * k, 20);
      const weights = randomMatrix("f16", n, k, 21);
      const scale = randomValues(tokens, 22);
      const before = randomValues(tokens * stride, 23);
      const bias = randomValues(n, 24);
      const { factor } = product;
      const value = {
        storeBiased: (v: number, _row: number, col: number) => v + bias[col],
        addBiased: (v: number, _row: number, col: number, old: number) =>
          old + factor * (v + bias[col]),
        add: (v: number, _row: number, _col: number, old: number) => old + factor * v,
        addScaled: (v: number, row: number, _col: number, old: number) =>
          old + factor * scale[row] * v,
      };
      const multipliedBy = cpu.linear(x, weights.exact, k);
      const expected = before.map((old, i) => {
        const [row, col] = [Math.floor(i / stride), i % stride];
        return col < n ? value[epilogue](multipliedBy[row * n + col], row, col, old) : old;
      });
      const terms = { storeBiased: [bias], addBiased: [bias], add: [], addScaled: [scale] };
      const bindings = [x, weights.weights, before, ...terms[epilogue]];
      const [, , out] = await runKernel(gpu, kernel, sizes, bindings);
      assertClose(await readF32(gpu, out, expected.length), expected, 1e-5);
    });
  }
}
