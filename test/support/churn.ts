/** Streaming requests whose clients leave at random moments, and what is left of them. */

import assert from "node:assert/strict";

import { drawBelow, seededRandom, type Random } from "../../core/random.ts";
import { greedyBody, metric, streamCompletion } from "../../bench/rig/api.ts";
import type { Cluster } from "../../bench/rig/cluster.ts";
import { placementOf } from "../../bench/rig/control-api.ts";
import { residentBytes } from "./resident-bytes.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

/** Requests under way at a time. */
const CONCURRENCY = 32;

/** Token ids below this are in the vocabulary of every model here. */
const VOCABULARY = 384;

/** One request of up to 60 tokens for 24 more; every second client leaves within the first 20. True where it left. */
async function requestAndPerhapsLeave(url: string, random: Random): Promise<boolean> {
  const length = 1 + drawBelow(random, 60);
  const prompt = Array.from({ length }, () => drawBelow(random, VOCABULARY));
  const leavesAfter = random() < 0.5 ? drawBelow(random, 20) : Infinity;
  const controller = new AbortController();
  // Leaving after no chunk at all means while the request waits or is in its prefill.
  const timer = leavesAfter === 0 ? setTimeout(() => controller.abort(), 5) : undefined;
  let chunks = 0;
  try {
    for await (const chunk of streamCompletion(url, greedyBody(prompt, 24), controller.signal)) {
      assert.equal(chunk?.error, undefined);
      if (++chunks > leavesAfter) controller.abort();
    }
    return false;
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    return true;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Sends `numRequests`, 32 at a time, and waits until nothing of them is left in the engine.
 * Returns by how much the router's resident memory grew after request `baseline`, as a fraction.
 * Fails where sequences or KV blocks are left, or fewer than a quarter of the clients left or stayed.
 */
export async function churn(
  cluster: Cluster,
  numRequests: number,
  baseline: number,
): Promise<number> {
  const random = seededRandom(11);
  // The thread that plans starts with the first question, and takes what it takes once.
  await placementOf(cluster.url);
  let started = 0;
  let finished = 0;
  let left = 0;
  let bytesAtBaseline = 0;
  async function requestInTurn(): Promise<void> {
    while (started < numRequests) {
      started++;
      if (await requestAndPerhapsLeave(cluster.url, random)) left++;
      if (++finished === baseline) bytesAtBaseline = await residentBytes(cluster.router.pid);
    }
  }
  await Promise.all(Array.from({ length: CONCURRENCY }, requestInTurn));
  assert.equal(finished, numRequests);
  const share = left / numRequests;
  assert.ok(share > 0.25 && share < 0.75, `${left} of ${numRequests} clients left`);
  await waitFor("all KV blocks to be free and no sequence left", async () => {
    const running = await metric(cluster.url, "vllm:num_requests_running");
    const waiting = await metric(cluster.url, "vllm:num_requests_waiting");
    const usage = await metric(cluster.url, "vllm:kv_cache_usage_perc");
    return running === 0 && waiting === 0 && usage === 0;
  });
  return (await residentBytes(cluster.router.pid)) / bytesAtBaseline - 1;
}
