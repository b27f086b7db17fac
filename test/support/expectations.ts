/** Comparisons of what a cluster answers with what the goldens say. */

import assert from "node:assert/strict";

import { complete, continueGreedily, type CompletionChoice } from "../../bench/rig/api.ts";
import { logSoftmax, type DemoGolden, type Golden } from "./goldens.ts";

/** Most likely tokens that are compared per position: as many as the API reports. */
const TOP = 20;

/** Largest difference of a log-probability from its golden. */
export const LOGPROB_TOLERANCE = 1e-3;

/** Log-probabilities of a position by token id, as `prompt_logprobs` and token ids without a tokenizer name them. */
type Reported = Readonly<Record<string, number>>;

function worstDifference(reported: Reported, expected: Float64Array): number {
  const entries = Object.entries(reported);
  assert.ok(entries.length >= TOP, `${entries.length} candidates, expected at least ${TOP}`);
  let worst = 0;
  for (const [token, logprob] of entries) {
    const id = Number(token.replace("token_id:", ""));
    worst = Math.max(worst, Math.abs(logprob - expected[id]));
    assert.ok(Number.isFinite(expected[id]), `token ${token} is not in the golden`);
  }
  return worst;
}

async function echo(url: string, prompt: readonly number[]): Promise<CompletionChoice> {
  const { choices } = await complete(url, {
    prompt,
    echo: true,
    logprobs: TOP,
    max_tokens: 1,
    temperature: 0,
    ignore_eos: true,
    return_token_ids: true,
  });
  return choices[0];
}

/** The largest difference of any reported log-probability of a tiny golden's prompt, all positions. */
export async function logprobError(url: string, golden: Golden): Promise<number> {
  const { logprobs } = await echo(url, golden.prompt);
  assert.ok(logprobs);
  assert.equal(logprobs.top_logprobs.length, golden.prompt.length + 1);
  assert.equal(logprobs.top_logprobs[0], null, "nothing predicts the first token");
  // Entry t + 1 is what position t predicts.
  const errors = golden.logits.map((logits, t) =>
    worstDifference(logprobs.top_logprobs[t + 1] ?? {}, logSoftmax(logits)),
  );
  return Math.max(...errors);
}

/** A prompt and how it goes on. */
type KnownContinuation = Pick<Golden, "prompt" | "greedy">;

/** Fails unless the greedy continuation is the golden's, id by id. */
export async function assertGreedy(url: string, golden: KnownContinuation): Promise<void> {
  const { ids } = await continueGreedily(url, golden.prompt, golden.greedy.length);
  assert.deepEqual(ids, golden.greedy);
}

/** Fails unless the greedy continuations are the goldens': the first one's alone, then the others' in one batch. */
export async function assertAllGreedy(url: string, goldens: readonly KnownContinuation[]) {
  const [first, ...others] = goldens;
  await assertGreedy(url, first);
  await Promise.all(others.map((golden) => assertGreedy(url, golden)));
}

/**
 * The largest difference of any golden log-probability of a demo golden: the 20 most likely tokens of its last position,
 * and, where only their logits are known, the distances of those of other positions from the most likely one.
 */
export async function demoLogprobError(url: string, golden: DemoGolden): Promise<number> {
  const { choices } = await complete(url, {
    prompt: golden.token_ids,
    prompt_logprobs: TOP,
    logprobs: TOP,
    max_tokens: 1,
    temperature: 0,
    ignore_eos: true,
  });
  const [{ logprobs, prompt_logprobs: promptLogprobs }] = choices;
  assert.ok(logprobs && promptLogprobs);
  const byRank = (values: Iterable<number>) => [...values].sort((a, b) => b - a).slice(0, TOP);
  const last = byRank(Object.values(logprobs.top_logprobs[0] ?? {}));
  const expectedLast = byRank(logSoftmax(golden.last_logits));
  const errors = last.map((value, rank) => Math.abs(value - expectedLast[rank]));
  assert.equal(errors.length, TOP);
  for (const { position, top20 } of golden.others) {
    const reported = promptLogprobs[position + 1] ?? {};
    const [[firstId, firstLogit]] = top20;
    for (const [id, logit] of top20) {
      // Near ties at the end of the list may leave a token out on one side.
      const logprob = reported[id]?.logprob;
      if (logprob === undefined) {
        assert.ok(logit - top20[TOP - 1][1] < LOGPROB_TOLERANCE, `position ${position}: ${id}`);
        continue;
      }
      errors.push(Math.abs(logprob - reported[firstId].logprob - (logit - firstLogit)));
    }
  }
  return Math.max(...errors);
}
