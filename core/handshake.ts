/** What a router and a shard must agree on before anything is dispatched; pure. */

import { crc32 } from "node:zlib";

import { ShardHello } from "../proto/gen/switchyard/v1/expert.ts";
import type { WeightsDtype } from "./expert-device.ts";
import { EXPERT_FORMATS } from "./expert-format.ts";
import { type ExpertsSetting, isExpertsSetting } from "./expert-formats.ts";

/** A router's or shard's --weights. */
export type WeightsSetting = "auto" | WeightsDtype;

/** What both hellos carry. */
export interface HelloFields {
  readonly protocolVersion: number;
  readonly modelHash: string;
  /** "auto", "f16" or "f32". */
  readonly weights: string;
  /** "auto" or the name of a format of experts. */
  readonly experts: string;
}

/** Largest error that a shard's kernels may declare, as a share of the magnitudes added up: that of f16 products. */
export const MAX_CONFORMANCE_TOLERANCE = 5e-4;

/** Router and shard do not fit together. gRPC FAILED_PRECONDITION. */
export class HandshakeError extends Error {
  override readonly name = "HandshakeError";
}

/** Compares two hellos. Throws HandshakeError naming every field that does not agree and both its values. */
export function checkHellos(router: HelloFields, shard: HelloFields): void {
  const mismatches: string[] = [];
  const compare = (field: string, ours: string | number, theirs: string | number) =>
    mismatches.push(`${field}: the router has ${ours}, the shard has ${theirs}`);
  if (router.protocolVersion !== shard.protocolVersion) {
    compare("protocol_version", router.protocolVersion, shard.protocolVersion);
  }
  if (router.modelHash !== shard.modelHash) {
    compare("model_hash", router.modelHash, shard.modelHash);
  }
  for (const [side, { weights, experts }] of Object.entries({ router, shard })) {
    if (!isWeightsSetting(weights)) {
      mismatches.push(`weights: the ${side} has "${weights}", expected auto, f16 or f32`);
    }
    if (!isExpertsSetting(experts)) {
      const known = EXPERT_FORMATS.join(", ");
      mismatches.push(`experts: the ${side} has "${experts}", expected auto, ${known}`);
    }
  }
  for (const field of ["weights", "experts"] as const) {
    const fixed = [router[field], shard[field]].filter((setting) => setting !== "auto");
    if (fixed.length === 2 && fixed[0] !== fixed[1]) compare(field, router[field], shard[field]);
  }
  if (mismatches.length > 0) throw new HandshakeError(mismatches.join("; "));
}

/** Checksum of a shard's hello, whatever its own says. */
export function helloCrc(hello: ShardHello): number {
  return crc32(ShardHello.encode({ ...hello, crc32: 0 }).finish());
}

/** Judges the checksum of a shard's hello. Throws HandshakeError. */
export function checkHelloCrc(hello: ShardHello): void {
  const crc = helloCrc(hello);
  if (crc === hello.crc32) return;
  throw new HandshakeError(
    `crc32: the shard's hello has ${crc.toString(16)}, it states ${hello.crc32.toString(16)}`,
  );
}

/** Judges the error that a shard declares of its kernels. Throws HandshakeError naming value and limit. */
export function checkTolerance(declared: number): void {
  // A float on the wire, so compared as one.
  if (declared >= 0 && declared <= Math.fround(MAX_CONFORMANCE_TOLERANCE)) return;
  throw new HandshakeError(
    `conformance_tolerance: the shard has ${declared}, expected 0 to ${MAX_CONFORMANCE_TOLERANCE}`,
  );
}

/** Whether a hello's text is a --weights setting. */
function isWeightsSetting(text: string): text is WeightsSetting {
  return text === "auto" || text === "f16" || text === "f32";
}

/** One member's say in the cluster's dtype of weights. */
export interface WeightsVote {
  readonly weights: WeightsSetting;
  /** The member's adapter offers shader-f16. */
  readonly shaderF16: boolean;
}

/**
 * The one dtype of weights of a cluster: what any member asks for, else f16 where every adapter has shader-f16.
 * Throws HandshakeError where members ask for different ones.
 */
export function decideWeights(members: readonly WeightsVote[]): WeightsDtype {
  const asked = new Set(members.map(({ weights }) => weights).filter((one) => one !== "auto"));
  if (asked.size > 1) throw new HandshakeError("weights: f16 and f32 are both asked for");
  for (const weights of asked) return weights;
  return members.every(({ shaderF16 }) => shaderF16) ? "f16" : "f32";
}

/**
 * The one say of a cluster in the format of experts: what any member asks for, else auto.
 * Throws HandshakeError where members ask for different ones.
 */
export function decideExperts(members: readonly ExpertsSetting[]): ExpertsSetting {
  const asked = new Set(members.filter((one) => one !== "auto"));
  if (asked.size > 1) {
    throw new HandshakeError(`experts: ${[...asked].join(" and ")} are asked for`);
  }
  for (const experts of asked) return experts;
  return "auto";
}
