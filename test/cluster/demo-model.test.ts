import assert from "node:assert/strict";
import path from "node:path";
import { after, before, describe, test } from "node:test";

import { domainWindows, readReference, scoreWindow } from "../../bench/held-out/scorer.ts";
import { DEMO_MODEL, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertAllGreedy, demoLogprobError, LOGPROB_TOLERANCE } from "../support/expectations.ts";
import { readDemoGoldens } from "../support/goldens.ts";

/** A window in the middle of each domain's text. */
const MIDDLE = 20;

const MODEL_DIRECTORY = path.join(import.meta.dirname, "../..", DEMO_MODEL);

describe("the demo model on a router and 2 shards", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2, model: DEMO_MODEL });
  });
  after(() => cluster?.close());

  test("gives its goldens' log-probabilities and greedy continuations", async () => {
    const names = ["facts", "chat", "python", "one_token", "maths_fewshot"];
    const goldens = await readDemoGoldens(names);
    for (const golden of goldens) {
      const error = await demoLogprobError(cluster.url, golden);
      assert.ok(error <= LOGPROB_TOLERANCE, `${golden.name}: off by ${error}`);
    }
    const known = goldens.map(({ token_ids: prompt, greedy }) => ({ prompt, greedy: greedy.ids }));
    await assertAllGreedy(cluster.url, known);
  });

  test("scores held-out text within 0.5 % of the reference's perplexity", async () => {
    const reference = await readReference(MODEL_DIRECTORY);
    const target = { url: cluster.url, model: "demo-moe" };
    const check = async (domain: string) => {
      const windows = await domainWindows(MODEL_DIRECTORY, reference, domain);
      const { nllSum, scoredTokens } = await scoreWindow(target, windows[MIDDLE]);
      const ours = Math.exp(nllSum / scoredTokens);
      const theirs = Math.exp(reference.domains[domain].window_nll[MIDDLE]);
      const message = `${domain} window ${MIDDLE}: perplexity ${ours}, reference ${theirs}`;
      assert.ok(Math.abs(ours / theirs - 1) <= 0.005, message);
    };
    await Promise.all(Object.keys(reference.domains).map(check));
  });
});
