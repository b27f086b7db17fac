/** Which kernels compute experts: the one seam between weights in banks and the ways of multiplying by them. */

import type { ExpertSizes } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";
import { MAX_CONFORMANCE_TOLERANCE } from "../handshake.ts";
import type { Kernel } from "./kernel.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { expertDown } from "./kernels/expert-down.ts";
import { expertGateUp } from "./kernels/expert-gate-up.ts";
import type { ExpertLookup } from "./kernels/expert-bindings.ts";
import type { InputLoads } from "./kernels/shared-input.ts";
import { groupBySlot } from "./kernels/group-by-slot.ts";
import { type GroupRows, groupStride, maxGroupedTiles } from "./kernels/tile.ts";

/** The two halves of the experts of a bank; their bindings are those of kernels/expert-bindings.ts. */
export interface BankKernels {
  readonly gateUp: Kernel<StepSizes>;
  readonly down: Kernel<StepSizes>;
}

/** One way to run a layer's experts, good for some numbers of rows. */
export interface ExpertRegime {
  /** Rows of the tiles that the pairs are sorted into first; undefined: kernels read the routing itself. */
  readonly group?: GroupRows;
  readonly bank: (format: ExpertFormat) => BankKernels;
  /** Error that the kernels' results may have, as conformance.ts counts it; EXACT unless they round what they multiply. */
  readonly limit: number;
}

/** Limit of kernels that multiply weights and inputs as they are and add up in f32. */
export const EXACT = 2e-6;

/** Limit of kernels that round inputs and weights to f16 before they multiply. */
export const ROUNDED_TO_F16 = MAX_CONFORMANCE_TOLERANCE;

/** The ways to run experts of some sizes, and when which is good. */
export interface ExpertKernels {
  readonly regimes: readonly ExpertRegime[];
  /** Index of the regime for a step. */
  readonly choose: (sizes: StepSizes) => number;
}

/** Pairs per slot that has any: as counted, else as with balanced routing. */
export function densityOf({ tokens, topK, numSlots, pairsPerSlot }: StepSizes): number {
  const pairs = tokens * topK;
  return pairsPerSlot ?? pairs / Math.min(pairs, numSlots);
}

/** Pairs per slot from which sorting the pairs by slot saves more weight reads than it costs. */
export const GROUPED_FROM = 4;

/** Kernels of few, fat invocations, which need nothing of an adapter: one pair at a time, or four of a slot together. */
export function plainExpertKernels(sizes: ExpertSizes, loads: InputLoads = "own"): ExpertKernels {
  const bank =
    (lookup: ExpertLookup) =>
    (format: ExpertFormat): BankKernels => ({
      gateUp: expertGateUp(sizes, format, lookup, loads),
      down: expertDown(sizes, format, lookup, loads),
    });
  return {
    regimes: [
      { bank: bank({ kind: "direct", rows: 1 }), limit: EXACT },
      { group: 4, bank: bank({ kind: "grouped", rows: 4 }), limit: EXACT },
    ],
    choose: (step) => (densityOf(step) >= GROUPED_FROM ? 1 : 0),
  };
}

/** The kernel that sorts pairs for a regime of tiles of so many rows: 0 counts; 1 routing; 2 tiles. */
export function groupKernel(rows: GroupRows, maxSlots: number): Kernel<StepSizes> {
  return groupBySlot(rows, maxSlots);
}

/** u32 that the tiles of so many pairs over so many slots take. */
export function tileWords(rows: GroupRows, maxPairs: number, maxSlots: number): number {
  return maxGroupedTiles(maxPairs, 1, maxSlots, rows) * groupStride(rows);
}
