/** A load that runs while a cluster is changed, and must not notice. */

import assert from "node:assert/strict";

import type { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import {
  driveLoad,
  failureText,
  judgeLoad,
  type KnownPrompt,
} from "../../bench/rig/load-driver.ts";

/** Requests at a time, unless told otherwise. */
const CONCURRENCY = 8;

/**
 * Sends requests to the living routers by turns for as long as `change` takes, and fails where one has no whole answer
 * or a token that the undisturbed run has not. Returns how many there were.
 */
export async function underLoad(
  cluster: ElasticCluster,
  prompts: readonly KnownPrompt[],
  change: () => Promise<void>,
  concurrency = CONCURRENCY,
): Promise<number> {
  const over = new AbortController();
  let turn = 0;
  const load = driveLoad({
    prompts,
    concurrency,
    target: () => {
      const routers = cluster.routers();
      return routers[turn++ % routers.length]?.url;
    },
    until: over.signal,
  });
  try {
    await change();
  } finally {
    over.abort();
    await load.done;
  }
  const { requests, failed, wrong } = judgeLoad(load.requests);
  assert.equal(failed.length, 0, `of ${requests}: ${failureText(failed)}\n${cluster.output()}`);
  assert.deepEqual(wrong, []);
  return requests;
}
