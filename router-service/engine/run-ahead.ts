/** The step after one that is still in flight, planned before its tokens are known. */

import type { ActiveRequest } from "./active-request.ts";
import type { BatchPart, PlannedBatch, SampleWishes } from "./batch.ts";
import type { StepBatch } from "./model-runner.ts";
import type { Sequence } from "./sequence.ts";

/** Who is in the next step for certain, and how many end with this one. */
export interface Followers {
  readonly followers: readonly Follower[];
  readonly numEnding: number;
}

/**
 * Who follows the parts of a step: undefined where a part's next token depends on more than which is most likely, or
 * where its prompt goes on.
 */
export function followersOf(
  parts: readonly BatchPart[],
  activeOf: (sequence: Sequence) => ActiveRequest | undefined,
): Followers | undefined {
  const followers: Follower[] = [];
  for (const { chunk, samplesNext, firstSample, numPromptSamples } of parts) {
    const active = activeOf(chunk.sequence);
    if (active === undefined || !samplesNext) return undefined;
    if (active.endsNext()) continue;
    if (!active.choosesMostLikely()) return undefined;
    followers.push({ sequence: chunk.sequence, sampleRow: firstSample + numPromptSamples });
  }
  return { followers, numEnding: parts.length - followers.length };
}

/** A sequence whose next token a step in flight will choose, and the row of its samples that decides it. */
export interface Follower {
  readonly sequence: Sequence;
  readonly sampleRow: number;
}

/** Lays out the step after one in flight: one token of each follower, whose id is not known yet. */
export function planFollowing(followers: readonly Follower[], wishes: SampleWishes): PlannedBatch {
  const parts = followers.map(({ sequence }, row): BatchPart => ({
    chunk: { sequence, phase: "decode", start: sequence.tokenIds.length, numTokens: 1 },
    firstSample: row,
    numPromptSamples: 0,
    samplesNext: true,
  }));
  const batch: StepBatch = {
    follows: true,
    tokenIds: Uint32Array.from(followers, ({ sampleRow }) => sampleRow),
    positions: Uint32Array.from(parts, ({ chunk }) => chunk.start),
    sequenceRows: Uint32Array.from(followers.keys()),
    blockTables: followers.map(({ sequence }) => [...sequence.blocks]),
    samples: followers.map(({ sequence }, token) => ({ token, ...wishes.next(sequence) })),
  };
  return { batch, parts };
}
