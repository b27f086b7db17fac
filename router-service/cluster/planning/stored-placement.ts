/** A placement with all that routers must agree on, and its text in the store; pure. */

import { z } from "zod";

import { EXPERT_FORMATS, type ExpertFormat } from "../../../core/expert-format.ts";
import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Placement, Replica } from "../../../core/placement/placement.ts";

/** A placement as all routers of a model use it. */
export interface StoredPlacement {
  readonly placement: Placement;
  /** Dtype of the cluster's weights. */
  readonly weights: WeightsDtype;
  /** Format of the experts that the model's overlay says nothing of. */
  readonly experts: ExpertFormat;
  /** Name of the router that planned it. */
  readonly plannedBy: string;
  /** Why it was planned, for people. */
  readonly why: string;
  /** When it was planned, Unix milliseconds. */
  readonly at: number;
  /** Placements that follow until the move is done; 0: this is the one that was planned for. */
  readonly stagesLeft: number;
}

/** A stored placement is not of the form that this version writes. */
export class StoredPlacementError extends Error {
  override readonly name = "StoredPlacementError";
}

const VERSION = 1;

/** Shares are kept in millionths. */
const UNITS = 1_000_000;

const rank = z.int().min(0).max(65_535);

/**
 * For each expert its only rank, or ranks and shares in turns; the last share is what the others leave, so that they
 * sum to 1.
 */
const layerSchema = z.array(
  z.union([rank, z.array(z.int().min(0).max(UNITS)).refine(({ length }) => length % 2 === 1)]),
);

const schema = z.object({
  version: z.literal(VERSION),
  epoch: z.int().min(1),
  weights: z.enum(["f16", "f32"]),
  experts: z.enum(EXPERT_FORMATS),
  plannedBy: z.string(),
  why: z.string(),
  at: z.number(),
  stagesLeft: z.int().min(0),
  /** By the index of the MoE layer. */
  layers: z.record(z.string(), layerSchema),
});

/** The placement as JSON, a few bytes per expert. */
export function encodePlacement(stored: StoredPlacement): string {
  const { placement, ...facts } = stored;
  const layers = Object.fromEntries(
    [...placement.layers].map(([layer, replicas]) => [layer, replicas.map(encodeCopies)]),
  );
  const text: z.input<typeof schema> = {
    version: VERSION,
    epoch: placement.epoch,
    ...facts,
    layers,
  };
  return JSON.stringify(text);
}

/** What `encodePlacement` wrote. Throws StoredPlacementError. */
export function decodePlacement(text: string): StoredPlacement {
  const parsed = schema.safeParse(parseJson(text));
  if (!parsed.success) {
    const [{ path, message }] = parsed.error.issues;
    throw new StoredPlacementError(
      `a stored placement can not be read: ${path.join(".") || "the whole"}: ${message}`,
    );
  }
  const { version: _, epoch, layers, ...facts } = parsed.data;
  const decoded = Object.entries(layers).map(
    ([layer, experts]) => [Number(layer), experts.map(decodeCopies)] as const,
  );
  return { placement: { epoch, layers: new Map(decoded.sort(([a], [b]) => a - b)) }, ...facts };
}

/** The newest epoch that a text which can not be read claims to be of; 0 where none can be made out. */
export function claimedEpoch(text: string): number {
  const claims = [...text.matchAll(/"epoch"\s*:\s*(\d+)/g)].map(([, digits]) => Number(digits));
  return Math.max(0, ...claims.filter((epoch) => epoch < Number.MAX_SAFE_INTEGER));
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new StoredPlacementError(
      `a stored placement can not be read: ${(error as Error).message}`,
    );
  }
}

function encodeCopies(copies: readonly Replica[]): number | number[] {
  if (copies.length === 1) return copies[0].rank;
  return copies.flatMap(({ rank, share }) => [rank, Math.round(share * UNITS)]).slice(0, -1);
}

function decodeCopies(copies: number | readonly number[]): Replica[] {
  const flat = typeof copies === "number" ? [copies] : copies;
  let left = UNITS;
  const replicas: Replica[] = [];
  for (let i = 0; i < flat.length; i += 2) {
    const units = i + 1 < flat.length ? flat[i + 1] : left;
    left -= units;
    replicas.push({ rank: flat[i], share: Math.max(0, units) / UNITS });
  }
  return replicas;
}
