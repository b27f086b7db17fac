/** The ways of multiplying by experts that an adapter can be measured on; pure. */

import type { ExpertSizes } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";
import type { AdapterOffers } from "./device.ts";
import type { BankKernels } from "./expert-kernels.ts";
import { expertDown } from "./kernels/expert-down.ts";
import { expertGateUp } from "./kernels/expert-gate-up.ts";
import type { ExpertLookup } from "./kernels/expert-bindings.ts";
import { gemmDown } from "./kernels/gemm-down.ts";
import { gemmGateUp } from "./kernels/gemm-gate-up.ts";
import { gemmName, gemmRows, type GemmShape } from "./kernels/gemm.ts";
import { matvecDown } from "./kernels/matvec-down.ts";
import { matvecGateUp } from "./kernels/matvec-gate-up.ts";
import { matvecName, type MatvecShape } from "./kernels/matvec.ts";
import { subgroupMatrixDown } from "./kernels/subgroup-matrix-down.ts";
import { subgroupMatrixGateUp } from "./kernels/subgroup-matrix-gate-up.ts";
import {
  subgroupMatrixName,
  subgroupMatrixRows,
  type SubgroupMatrixShape,
  subgroupMatrixShapes,
} from "./kernels/subgroup-matrix.ts";
import type { GroupRows } from "./kernels/tile.ts";

/** Both halves of an expert FFN by one kind of kernel; plain data, so that a choice can be kept in a file. */
export type Candidate =
  /** Few, fat invocations that need nothing of an adapter. */
  | { readonly kind: "plain"; readonly rows: 1 | 4 }
  | { readonly kind: "matvec"; readonly rows: 1 | 2 | 4 | 8; readonly shape: MatvecShape }
  /** Tiles in f16 are none: a state past f16's range would become infinite. Subgroup matrices scale their rows first. */
  | { readonly kind: "gemm"; readonly shape: GemmShape & { readonly tile: "f32" } }
  | { readonly kind: "subgroupMatrix"; readonly shape: SubgroupMatrixShape };

/** A candidate in a few words, for tables and logs. */
export function candidateName(candidate: Candidate): string {
  switch (candidate.kind) {
    case "plain":
      return `plain ×${candidate.rows}`;
    case "matvec":
      return `${matvecName(candidate.shape)} ×${candidate.rows}`;
    case "gemm":
      return gemmName(candidate.shape);
    case "subgroupMatrix":
      return subgroupMatrixName(candidate.shape);
  }
}

/** Rows of the tiles that a candidate wants pairs sorted into; undefined where it reads the routing itself. */
export function candidateGroup(candidate: Candidate): GroupRows | undefined {
  switch (candidate.kind) {
    case "plain":
    case "matvec":
      return candidate.rows === 1 ? undefined : candidate.rows;
    case "gemm":
      return gemmRows(candidate.shape);
    case "subgroupMatrix":
      return subgroupMatrixRows(candidate.shape);
  }
}

function lookupOf(rows: 1 | 2 | 4 | 8): ExpertLookup {
  return rows === 1 ? { kind: "direct", rows } : { kind: "grouped", rows };
}

/** A candidate's kernels over banks of a format. */
export function candidateKernels(
  candidate: Candidate,
  sizes: ExpertSizes,
  format: ExpertFormat,
): BankKernels {
  switch (candidate.kind) {
    case "plain": {
      const lookup = lookupOf(candidate.rows);
      return {
        gateUp: expertGateUp(sizes, format, lookup),
        down: expertDown(sizes, format, lookup),
      };
    }
    case "matvec": {
      const lookup = lookupOf(candidate.rows);
      return {
        gateUp: matvecGateUp(sizes, format, lookup, candidate.shape),
        down: matvecDown(sizes, format, lookup, candidate.shape),
      };
    }
    case "gemm":
      return {
        gateUp: gemmGateUp(sizes, format, candidate.shape),
        down: gemmDown(sizes, format, candidate.shape),
      };
    case "subgroupMatrix":
      return {
        gateUp: subgroupMatrixGateUp(sizes, format, candidate.shape),
        down: subgroupMatrixDown(sizes, format, candidate.shape),
      };
  }
}

/** What an adapter has that bounds the candidates. */
export interface CandidateLimits {
  readonly offers: AdapterOffers;
  readonly workgroupBytes: number;
  readonly workgroupThreads: number;
}

const GEMM_SHAPES: readonly Omit<GemmShape, "tile">[] = [
  { threads: [8, 8], block: [4, 2] },
  { threads: [8, 8], block: [4, 4] },
  { threads: [16, 16], block: [4, 4] },
  { threads: [16, 8], block: [8, 8] },
];

/**
 * The candidates for steps with about so many pairs per slot that has any, the likeliest first: a measurement that is
 * short of time takes the first ones. A program on the CPU is best served by few, fat invocations.
 */
export function candidatesFor(pairsPerSlot: number, limits: CandidateLimits): Candidate[] {
  const candidates = likeliestFirst(pairsPerSlot, limits);
  return limits.offers.software ? candidates.reverse() : candidates;
}

function likeliestFirst(pairsPerSlot: number, limits: CandidateLimits): Candidate[] {
  const { offers, workgroupBytes, workgroupThreads } = limits;
  const rows = pairsPerSlot < 2 ? 1 : pairsPerSlot < 3 ? 2 : pairsPerSlot < 6 ? 4 : 8;
  const reduce = offers.subgroups ? "subgroup" : "workgroup";
  const matvec = (threads: MatvecShape["threads"], columns: MatvecShape["columns"]): Candidate => ({
    kind: "matvec",
    rows,
    shape: { threads, columns, reduce },
  });
  const plain: Candidate = { kind: "plain", rows: pairsPerSlot < 4 ? 1 : 4 };
  const few = [matvec(64, 4), matvec(32, 4), matvec(128, 4), matvec(64, 2), matvec(32, 8)];
  if (pairsPerSlot < 6) return [...few, plain];
  const gemms = GEMM_SHAPES.map((shape): Candidate => ({
    kind: "gemm",
    shape: { ...shape, tile: "f32" },
  }));
  const matrices = subgroupMatrixShapes(offers, workgroupThreads).map((shape): Candidate => ({
    kind: "subgroupMatrix",
    shape,
  }));
  const many = [...matrices.reverse(), ...gemms.reverse()].filter(
    (candidate) =>
      candidateBytes(candidate) <= workgroupBytes &&
      (candidateGroup(candidate) ?? 1) <= Math.max(16, 2 * pairsPerSlot),
  );
  return pairsPerSlot < 32 ? [...many, ...few.slice(0, 2), plain] : [...many, plain];
}

/** Bytes of workgroup memory that a candidate's kernels take at most. */
function candidateBytes(candidate: Candidate): number {
  const sizes: ExpertSizes = {
    hiddenSize: 64,
    expertIntermediateSize: 64,
    activation: { kind: "silu" },
    expertBias: false,
  };
  const { gateUp, down } = candidateKernels(candidate, sizes, "f16");
  return Math.max(gateUp.workgroupBytes ?? 0, down.workgroupBytes ?? 0);
}
