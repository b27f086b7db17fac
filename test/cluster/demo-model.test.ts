import assert from "node:assert/strict";
import path from "node:path";
import { after, before, describe, test } from "node:test";

import { domainWindows, readReference, scoreWindow } from "../../bench/held-out/scorer.ts";
import { DEMO_MODEL, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertAllGreedy, demoLogprobError, LOGPROB_TOLERANCE } from "../support/expectations.ts";
import { readDemoGoldens } from "../support/goldens.ts";

/** Of each domain's text: its first window and two further in. */
const WINDOWS = [0, 20, 40];

const MODEL_DIRECTORY = path.join(import.meta.dirname, "../..", DEMO_MODEL);

describe("the demo model on a router and 2 shards", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2, model: DEMO_MODEL });
  });
  after(() => cluster?.close());

  test("gives its goldens' log-probabilities and greedy continuations", async () => {
    const names = ["facts", "chat", "maths", "books", "python", "one_token", "maths_fewshot"];
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
      const scores = await Promise.all(WINDOWS.map((i) => scoreWindow(target, windows[i])));
      for (const [k, i] of WINDOWS.entries()) {
        const ours = Math.exp(scores[k].nllSum / scores[k].scoredTokens);
        const theirs = Math.exp(reference.domains[domain].window_nll[i]);
        const message = `${domain} window ${i}: perplexity ${ours}, reference ${theirs}`;
        assert.ok(Math.abs(ours / theirs - 1) <= 0.005, message);
      }
    };
    await Promise.all(Object.keys(reference.domains).map(check));
  });
});
