/** The matrix kernels for real GPUs, against the plain loops, in every weight format. */

import { test } from "node:test";

import { gateUp as gateUpOnCpu } from "../../core/cpu/ffn.ts";
import * as cpu from "../../core/cpu/operations.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import type { Kernel } from "../../core/gpu/kernel.ts";
import { groupBySlot } from "../../core/gpu/kernels/group-by-slot.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { matvecGateUp } from "../../core/gpu/kernels/matvec-gate-up.ts";
import { matvecLinear } from "../../core/gpu/kernels/matvec-linear.ts";
import type { MatvecShape } from "../../core/gpu/kernels/matvec.ts";
import { type GroupRows, groupStride, maxGroupedTiles } from "../../core/gpu/kernels/tile.ts";
import { assertClose, randomValues, readF32, runKernel, zeros } from "./gpu-fixture.ts";
import { randomRouting } from "./matrix-kernel-cases.ts";
import { randomMatrix, type RandomMatrix } from "./packed-matrix.ts";

const NONE = 0xffffffff;

/** Experts of ragged sizes over rows, some of which have no expert here. */
interface ExpertCase {
  readonly rows: number;
  readonly topK: number;
  readonly numSlots: number;
  readonly hiddenSize: number;
  readonly width: number;
  readonly format: ExpertFormat;
}

/** What both halves of the FFN should give, [numPairs, …]; pairs without a slot stay 0. */
function expectedOf(
  { rows, topK, hiddenSize, width }: ExpertCase,
  x: Float32Array,
  slots: Uint32Array,
  gateUp: RandomMatrix,
  down: RandomMatrix,
) {
  const inner = new Float32Array(rows * topK * width);
  const results = new Float32Array(rows * topK * hiddenSize);
  slots.forEach((slot, pair) => {
    if (slot === NONE) return;
    const row = Math.floor(pair / topK);
    const part = 2 * width * hiddenSize;
    const states = gateUpOnCpu(
      x.subarray(row * hiddenSize, (row + 1) * hiddenSize),
      gateUp.exact.subarray(slot * part, (slot + 1) * part),
      hiddenSize,
    );
    inner.set(states, pair * width);
    const weights = down.exact.subarray((slot * part) / 2, ((slot + 1) * part) / 2);
    results.set(cpu.linear(states, weights, width), pair * hiddenSize);
  });
  return { inner, results };
}

/** The tiles of a batch as group-by-slot makes them. */
async function groupedTiles(
  gpu: Gpu,
  rows: GroupRows,
  sizes: StepSizes,
  interleaved: Uint32Array,
): Promise<GPUBuffer> {
  const tiles = maxGroupedTiles(sizes.tokens, sizes.topK, sizes.numSlots, rows);
  const buffer = allocate(gpu, "tiles", tiles * groupStride(rows) * 4, STORAGE);
  await runKernel(gpu, groupBySlot(rows), sizes, [interleaved, buffer]);
  return buffer;
}

/** Checks both halves of an expert FFN; the second half reads the first half's expected states. */
async function checkExperts(
  gpu: Gpu,
  of: ExpertCase,
  tileRows: 1 | GroupRows,
  gateUpKernel: Kernel<StepSizes>,
  downKernel: Kernel<StepSizes>,
  tolerance: number,
): Promise<void> {
  const { rows, topK, numSlots, hiddenSize, width, format } = of;
  const x = randomValues(rows * hiddenSize, 10);
  const routing = randomRouting(rows, topK, numSlots, 11);
  const gateUp = randomMatrix(format, numSlots * 2 * width, hiddenSize, 12);
  const down = randomMatrix(format, numSlots * hiddenSize, width, 13);
  const expected = expectedOf(of, x, routing.slots, gateUp, down);
  const sizes = { tokens: rows, samples: 0, topK, numSlots };
  const tiles =
    tileRows === 1
      ? routing.interleaved
      : await groupedTiles(gpu, tileRows, sizes, routing.interleaved);
  const scales = ({ scales }: RandomMatrix) => (scales.length > 0 ? [scales] : []);
  const inner = zeros(gpu, expected.inner.length);
  await runKernel(gpu, gateUpKernel, sizes, [x, gateUp.weights, inner, tiles, ...scales(gateUp)]);
  assertClose(await readF32(gpu, inner, expected.inner.length), expected.inner, tolerance);
  const results = zeros(gpu, expected.results.length);
  await runKernel(gpu, downKernel, sizes, [
    expected.inner,
    down.weights,
    results,
    tiles,
    ...scales(down),
  ]);
  assertClose(await readF32(gpu, results, expected.results.length), expected.results, tolerance);
}

/** Widths that take the wide, the half and the narrow loads of each format, with partial groups. */
const RAGGED: readonly (readonly [hiddenSize: number, width: number])[] = [
  [96, 80],
  [72, 40],
];

/** Declares the cases on an open device; software adapters take seconds to compile some of them. */
export function fastKernelCases(gpu: Gpu, formats: readonly ExpertFormat[]): void {
  for (const format of formats) {
    for (const [i, [hiddenSize, width]] of RAGGED.entries()) {
      const shape: MatvecShape = {
        threads: i === 0 ? 32 : 64,
        columns: 2,
        reduce: i === 0 && gpu.offers.subgroups ? "subgroup" : "workgroup",
      };
      const tileRows = i === 0 ? 2 : 1;
      const of = { rows: 7, topK: 3, numSlots: 4, hiddenSize, width, format };
      test(`matvec ${shape.reduce} ${format} ×${tileRows}: experts of ${hiddenSize}→${width}`, async () => {
        const lookup =
          tileRows === 1
            ? ({ kind: "direct", rows: 1 } as const)
            : ({ kind: "grouped", rows: tileRows } as const);
        await checkExperts(
          gpu,
          of,
          tileRows,
          matvecGateUp({ hiddenSize, intermediateSize: width, format, lookup, shape }),
          matvecLinear({ k: width, n: hiddenSize, format, lookup, epilogue: "store", shape }),
          1e-5,
        );
      });
    }
  }
}
