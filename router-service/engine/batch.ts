/** From scheduled chunks to the arrays that the device takes. */

import type { SampleRow, StepBatch } from "./model-runner.ts";
import type { Chunk } from "./scheduler.ts";
import { sampledPositions, type Sequence } from "./sequence.ts";

/** What is read back of one sampled row. */
export type SampleWish = Pick<SampleRow, "numCandidates" | "fullLogits">;

/** What each sequence wants of its sampled rows. */
export interface SampleWishes {
  /** For the next token. */
  next(sequence: Sequence): SampleWish;
  /** For a token of the prompt. */
  prompt(sequence: Sequence): SampleWish;
}

/** A chunk and its rows among the batch's samples: the prompt's from `firstSample`, then the next token's. */
export interface BatchPart {
  readonly chunk: Chunk;
  readonly firstSample: number;
  readonly numPromptSamples: number;
  readonly samplesNext: boolean;
}

/** A batch, and whose rows it holds: one part per chunk, in order. */
export interface PlannedBatch {
  readonly batch: StepBatch;
  readonly parts: readonly BatchPart[];
}

/** Lays the chunks out one after another; row i of the block tables is chunk i's. */
export function planBatch(chunks: readonly Chunk[], wishes: SampleWishes): PlannedBatch {
  const numTokens = chunks.reduce((sum, chunk) => sum + chunk.numTokens, 0);
  const tokenIds = new Uint32Array(numTokens);
  const positions = new Uint32Array(numTokens);
  const sequenceRows = new Uint32Array(numTokens);
  const samples: SampleRow[] = [];
  const parts: BatchPart[] = [];
  let firstToken = 0;
  for (const [row, chunk] of chunks.entries()) {
    const { sequence, start } = chunk;
    for (let i = 0; i < chunk.numTokens; i++) {
      tokenIds[firstToken + i] = sequence.tokenIds[start + i];
      positions[firstToken + i] = start + i;
      sequenceRows[firstToken + i] = row;
    }
    const { promptFrom, promptTo, samplesNext } = sampledPositions(sequence, chunk.numTokens);
    parts.push({
      chunk,
      firstSample: samples.length,
      numPromptSamples: promptTo - promptFrom,
      samplesNext,
    });
    for (let position = promptFrom; position < promptTo; position++) {
      const token = firstToken + position - start;
      const targetTokenId = sequence.tokenIds[position + 1];
      samples.push({ token, ...wishes.prompt(sequence), targetTokenId });
    }
    if (samplesNext) {
      samples.push({ token: firstToken + chunk.numTokens - 1, ...wishes.next(sequence) });
    }
    firstToken += chunk.numTokens;
  }
  // Copies: a sequence may change its blocks while the step is in flight.
  const blockTables = chunks.map(({ sequence }) => [...sequence.blocks]);
  return { batch: { tokenIds, positions, sequenceRows, blockTables, samples }, parts };
}
