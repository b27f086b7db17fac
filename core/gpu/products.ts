/**
 * The ways to multiply rows by one matrix (projections, gates, dense and shared FFNs, lm_head), and which is good for how
 * many rows; pure.
 *
 * The kernels of one kind give a row the same bits in whatever batch it comes; those of different kinds add up in
 * different orders, so that on a real GPU a row's last bits may depend on whether its batch was small or large.
 */

import type { WeightsDtype } from "../expert-device.ts";
import type { AdapterOffers, Gpu } from "./device.ts";
import type { Candidate } from "./expert-candidates.ts";
import type { Kernel } from "./kernel.ts";
import { ceilDiv, type StepSizes } from "./kernels/counts.ts";
import { gateUp, type GateUpOptions } from "./kernels/gate-up.ts";
import { gemmGateUp } from "./kernels/gemm-gate-up.ts";
import { gemmLinear } from "./kernels/gemm-linear.ts";
import { gemmBytes, type GemmShape } from "./kernels/gemm.ts";
import { linear } from "./kernels/linear.ts";
import type { PlainLookup, PlainProduct } from "./kernels/linear-rows.ts";
import { matvecGateUp } from "./kernels/matvec-gate-up.ts";
import { matvecLinear } from "./kernels/matvec-linear.ts";
import type { MatvecShape } from "./kernels/matvec.ts";
import type { InputLoads } from "./kernels/shared-input.ts";

/** One way to multiply. */
export type ProductCandidate = Extract<Candidate, { kind: "plain" | "matvec" | "gemm" }>;

/** The way for so many rows and more, up to where the next range begins. */
export interface RowRange {
  readonly from: number;
  readonly candidate: ProductCandidate;
}

/** A range of plain kernels. */
export interface PlainRange extends RowRange {
  readonly candidate: Extract<ProductCandidate, { kind: "plain" }>;
}

/** What a choice depends on. */
export interface ProductShape {
  readonly k: number;
  /** Columns of the result; of one head, where there are several matrices. */
  readonly n: number;
  /** Matrices that are multiplied by at once, 1 unless told otherwise. */
  readonly matrices?: number;
  /** The first half of a gated FFN: two matrix rows make one column. */
  readonly gated?: boolean;
}

/** The ways for a product, the fewest rows first; the first range begins at 1. */
export type ProductChoice = (product: ProductShape) => readonly RowRange[];

/** Few, fat invocations that need nothing of an adapter: what programs on the CPU are best served by. */
export const plainProducts: ProductChoice = () => [
  { from: 1, candidate: { kind: "plain", rows: 1 } },
  { from: 2, candidate: { kind: "plain", rows: 4 } },
];

/** Whether a product is computed by plain kernels alone, whatever the number of rows. */
export function isPlain(ranges: readonly RowRange[]): ranges is readonly PlainRange[] {
  return ranges.every(({ candidate }) => candidate.kind === "plain");
}

/** What an adapter has that bounds the choice. */
export interface ProductLimits {
  readonly offers: Pick<AdapterOffers, "subgroups">;
  readonly workgroupBytes: number;
  readonly workgroupThreads: number;
  readonly maxWorkgroups: number;
}

/** What is good for adapters of this one's kind, none of it measured. */
export function productsFor({ device: { limits }, offers }: Gpu): ProductChoice {
  if (offers.software) return plainProducts;
  return fastProducts({
    offers,
    workgroupBytes: limits.maxComputeWorkgroupStorageSize,
    workgroupThreads: limits.maxComputeInvocationsPerWorkgroup,
    maxWorkgroups: limits.maxComputeWorkgroupsPerDimension,
  });
}

/** Rows of the input from which a tile's reuse of weights outweighs the idle part of the last tile. */
const TILED_FROM = 24;
const WIDE_TILED_FROM = 256;

const TILE = { threads: [8, 8], block: [4, 4], tile: "f32" } as const satisfies GemmShape;
const WIDE_TILE = { threads: [16, 16], block: [4, 4], tile: "f32" } as const satisfies GemmShape;

/**
 * Matrix-vector kernels for few rows, tiles for many. Workgroups of a matrix-vector kernel share K so that each invocation
 * has about four loads, and take as many columns as leave a few workgroups for each core of a large GPU.
 */
export function fastProducts(limits: ProductLimits): ProductChoice {
  const { offers, workgroupBytes, workgroupThreads, maxWorkgroups } = limits;
  const reduce = offers.subgroups ? "subgroup" : "workgroup";
  const tiles = (
    [
      { from: TILED_FROM, shape: TILE },
      { from: WIDE_TILED_FROM, shape: WIDE_TILE },
    ] as const
  ).filter(
    ({ shape }) =>
      gemmBytes(shape) <= workgroupBytes && shape.threads[0] * shape.threads[1] <= workgroupThreads,
  );
  return ({ k, n, matrices = 1, gated = false }) => {
    const columns = matvecColumns(n, n * matrices, gated, maxWorkgroups);
    // Many columns need workgroup memory for each invocation where there are no subgroups.
    const threads = k <= 1024 || columns === 8 ? 32 : k <= 2048 ? 64 : 128;
    const shape: MatvecShape = { threads, columns, reduce };
    return [
      { from: 1, candidate: { kind: "matvec", rows: 1, shape } },
      { from: 2, candidate: { kind: "matvec", rows: 4, shape } },
      { from: 5, candidate: { kind: "matvec", rows: 8, shape } },
      ...tiles.map(({ from, shape: tile }) => ({
        from,
        candidate: { kind: "gemm", shape: tile } as const,
      })),
    ];
  };
}

/** Columns of a workgroup: those of a gated product have two sums each. */
function matvecColumns(
  n: number,
  all: number,
  gated: boolean,
  maxWorkgroups: number,
): MatvecShape["columns"] {
  if (ceilDiv(n, 4) > maxWorkgroups) return 8;
  const columns = all >= 1024 ? 4 : all >= 256 ? 2 : 1;
  return gated ? (columns === 4 ? 2 : 1) : columns;
}

/** What a kernel over a matrix in f16 or f32 computes. */
export interface Product extends Omit<PlainProduct, "format"> {
  readonly weights: WeightsDtype;
  /** How plain kernels come by the input's rows. */
  readonly loads?: InputLoads;
}

/** A candidate's kernel; bindings as of `linear`. Throws TypeError where a plain one is asked for a matrix per head. */
export function productKernel(
  candidate: ProductCandidate,
  product: Product,
  kind: PlainLookup["kind"],
): Kernel<StepSizes> {
  const of = { ...product, format: product.weights };
  switch (candidate.kind) {
    case "plain":
      if (product.heads) throw new TypeError("plain kernels over heads are those of head-linear");
      return linear({ ...product, lookup: { kind, rows: candidate.rows } });
    case "matvec": {
      const lookup = { kind, rows: candidate.rows } as const;
      return matvecLinear({ ...of, lookup, shape: candidate.shape });
    }
    case "gemm":
      return gemmLinear({ ...of, rows: kind, shape: candidate.shape });
  }
}

/** A candidate's kernel for the first half of a SwiGLU FFN that all rows take; bindings as of `gateUp`. */
export function gateUpKernel(
  candidate: ProductCandidate,
  ffn: Omit<GateUpOptions, "lookup">,
): Kernel<StepSizes> {
  const { hiddenSize, intermediateSize, weights } = ffn;
  const sizes = {
    hiddenSize,
    expertIntermediateSize: intermediateSize,
    activation: { kind: "silu" },
    expertBias: false,
  } as const;
  switch (candidate.kind) {
    case "plain": {
      const lookup = { kind: "tokens", rows: candidate.rows } as const;
      return gateUp({ ...ffn, lookup });
    }
    case "matvec": {
      const lookup = { kind: "tokens", rows: candidate.rows } as const;
      return matvecGateUp(sizes, weights, lookup, candidate.shape);
    }
    case "gemm":
      return gemmGateUp(sizes, weights, candidate.shape, "tokens");
  }
}
