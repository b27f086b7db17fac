/** The tiny model, open for a test, and the limits of a small runner of it. */

import type { TestContext } from "node:test";

import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { type Checkpoint, openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";

/** Steps of a few tokens. */
export const SMALL_LIMITS: RunnerLimits = {
  maxTokens: 16,
  maxSequences: 4,
  maxSamples: 16,
  maxModelLen: 256,
  numBlocks: 32,
};

/** Opens the tiny model's checkpoint, until the test is over. */
export async function openTiny(t: Pick<TestContext, "after">): Promise<Checkpoint> {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  t.after(() => checkpoint.close());
  return checkpoint;
}
