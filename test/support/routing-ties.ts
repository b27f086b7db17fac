/** How near the tiny model's gates come to a tie: the order in which shards' sums are added would decide one. */

import assert from "node:assert/strict";

import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { linear, topIndices } from "../../core/cpu/operations.ts";
import { allIn } from "../../core/expert-format.ts";
import { type Checkpoint, openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { readLayer } from "../../core/model/checkpoint/weights.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import type { KnownPrompt } from "../../bench/rig/load-driver.ts";
import { toF32 } from "../../core/tensor.ts";
import { createCpuRunner } from "../../router-service/engine/cpu/cpu-runner.ts";
import { createLocalDeviceExperts } from "../../router-service/engine/local-experts.ts";
import { BLOCK_SIZE } from "../../router-service/engine/model-runner.ts";
import { batchOf, NEVER } from "./step-batch.ts";

/** Longest sequence that is measured, tokens. */
const MAX_TOKENS = 256;

/** Router logits that are nearer than this may change places when sums are added in another order, which moves them by some 1e-6. */
const MIN_ROUTING_GAP = 1e-5;

/** The prompts whose tokens have no two experts that tie for the last place: else who holds an expert would decide. */
export async function withoutTies(prompts: readonly KnownPrompt[]): Promise<KnownPrompt[]> {
  const gaps = await routingGaps(prompts.map(({ ids, greedy }) => [...ids, ...greedy]));
  const kept = prompts.filter((_, i) => gaps[i] >= MIN_ROUTING_GAP);
  assert.ok(kept.length > prompts.length / 2, `${kept.length} prompts without ties`);
  return kept;
}

/**
 * Of each sequence of at most 256 token ids, in the tiny model: the smallest distance, over all tokens and MoE layers,
 * between the router logits of the last expert that is chosen and of the next.
 */
async function routingGaps(sequences: readonly (readonly number[])[]): Promise<number[]> {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  try {
    return await gapsOf(checkpoint, sequences);
  } finally {
    await checkpoint.close();
  }
}

async function gapsOf(
  checkpoint: Checkpoint,
  sequences: readonly (readonly number[])[],
): Promise<number[]> {
  const { config } = checkpoint;
  const gates = await Promise.all(
    Array.from({ length: config.numLayers }, async (_, layer) => {
      const { ffn } = await readLayer(checkpoint, layer);
      return ffn.kind === "moe" ? toF32(ffn.gate.weight) : undefined;
    }),
  );
  const experts = await createLocalDeviceExperts(
    createCpuExpertDevice(config),
    checkpoint,
    allIn("f32"),
  );
  let smallest = Infinity;
  const runner = await createCpuRunner({
    checkpoint,
    weights: "f32",
    wire: "f32",
    limits: {
      maxTokens: MAX_TOKENS,
      maxSequences: 1,
      maxSamples: MAX_TOKENS,
      maxModelLen: MAX_TOKENS,
      numBlocks: MAX_TOKENS / BLOCK_SIZE,
    },
    runExperts: async (layer, hiddenStates, routing) => {
      const { rows } = await routing.read();
      const gate = gates[layer];
      if (gate === undefined) throw new Error(`layer ${layer} has no gate`);
      const logits = linear(rows, gate, config.hiddenSize);
      for (let row = 0; row < hiddenStates.numTokens; row++) {
        const of = logits.subarray(row * config.numExperts, (row + 1) * config.numExperts);
        const [last, next] = topIndices(of, routing.topK + 1).slice(-2);
        smallest = Math.min(smallest, of[last] - of[next]);
      }
      return experts(layer, hiddenStates, routing);
    },
  });
  const gaps: number[] = [];
  for (const ids of sequences) {
    smallest = Infinity;
    const blocks = Array.from({ length: Math.ceil(ids.length / BLOCK_SIZE) }, (_, i) => i);
    await runner.forward(batchOf([{ tokenIds: ids, from: 0, blocks }], false), NEVER);
    gaps.push(smallest);
  }
  runner.close();
  return gaps;
}
