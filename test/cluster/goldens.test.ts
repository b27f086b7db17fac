import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { complete, continueGreedily, greedyBody, metric } from "../../bench/rig/api.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertAllGreedy, LOGPROB_TOLERANCE, logprobError } from "../support/expectations.ts";
import { readGoldens, readTinyGoldens } from "../support/goldens.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const goldens = await readTinyGoldens();

/** Prompts with part of their known continuation: `count` different prompts, all of whose continuations are known. */
function variants(count: number): { prompt: readonly number[]; greedy: readonly number[] }[] {
  return Array.from({ length: count }, (_, i) => {
    const { prompt, greedy } = goldens[i % goldens.length];
    const taken = 2 * Math.floor(i / goldens.length);
    return { prompt: [...prompt, ...greedy.slice(0, taken)], greedy: greedy.slice(taken) };
  });
}

for (const shards of [0, 1, 2, 3])
  describe(`a router with ${shards} shards`, () => {
    let cluster: Cluster;
    before(async () => {
      cluster = await startCluster({ shards });
    });
    after(() => cluster?.close());

    test("gives the goldens' log-probabilities at every position", async () => {
      for (const [i, golden] of goldens.entries()) {
        const error = await logprobError(cluster.url, golden);
        assert.ok(error <= LOGPROB_TOLERANCE, `prompt ${i}: off by ${error}`);
      }
    });

    test("continues the goldens greedily, id by id, one alone and the others together", () =>
      assertAllGreedy(cluster.url, goldens));

    if (shards === 2) underLoad(() => cluster.url);
  });

// The other families run over two shards in one process: test/router-service/cluster/goldens-two-gpu-shards.test.ts.
for (const family of ["deepseek_v3", "gpt_oss"])
  describe(`a router with 2 shards of ${family}`, () => {
    const model = `test/goldens/${family}`;
    let cluster: Cluster;
    before(async () => {
      cluster = await startCluster({ shards: 2, model });
    });
    after(() => cluster?.close());

    test("gives the goldens' log-probabilities at every position, and continues them greedily", async () => {
      const known = await readGoldens(model);
      for (const [i, golden] of known.entries()) {
        const error = await logprobError(cluster.url, golden);
        assert.ok(error <= LOGPROB_TOLERANCE, `prompt ${i}: off by ${error}`);
      }
      await assertAllGreedy(cluster.url, known);
    });
  });

/** Tests of many sequences at once, and of one that finds what another left. */
function underLoad(url: () => string): void {
  test("continues 16 different prompts in one batch as it does each alone", async () => {
    const batch = variants(16);
    assert.equal(new Set(batch.map(({ prompt }) => prompt.join())).size, 16);
    // All generate alike many tokens, so that all 16 are in the batch until the end.
    const maxTokens = Math.min(...batch.map(({ greedy }) => greedy.length));
    const body = greedyBody(
      batch.map(({ prompt }) => prompt),
      maxTokens,
    );
    let done = false;
    const answer = complete(url(), body).finally(() => {
      done = true;
    });
    const running: number[] = [];
    await waitFor(
      "16 running sequences",
      async () => {
        running.push(await metric(url(), "vllm:num_requests_running"));
        return done || running.at(-1) === 16;
      },
      60_000,
    );
    assert.equal(Math.max(...running), 16, `running: ${running.join()}`);
    const { choices } = await answer;
    for (const [i, { greedy }] of batch.entries())
      assert.deepEqual(choices[i].token_ids, greedy.slice(0, maxTokens), `prompt ${i}`);
  });

  test("continues a prompt that it finds in the prefix cache as it did the first time", async () => {
    const golden = goldens[3];
    const queries = await metric(url(), "vllm:prefix_cache_hits_total");
    const { ids, usage } = await continueGreedily(url(), golden.prompt, 24);
    const { cached_tokens: cached } = usage.prompt_tokens_details;
    assert.equal(cached, 64, "the four full blocks before the last token");
    assert.equal(usage.prompt_tokens, golden.prompt.length);
    assert.deepEqual(ids, golden.greedy);
    assert.equal(await metric(url(), "vllm:prefix_cache_hits_total"), queries + 64);
  });
}

describe("a router with few KV blocks", () => {
  let cluster: Cluster;
  before(async () => {
    const routerFlags = ["--kv-blocks", "14", "--max-model-len", "128"];
    const shardFlags = ["--device", "cpu"];
    cluster = await startCluster({ shards: 2, routerFlags, shardFlags });
  });
  after(() => cluster?.close());

  test("continues the goldens exactly after it preempted sequences", async () => {
    assert.equal(await metric(cluster.url, "vllm:num_preemptions_total"), 0);
    const batch = variants(16).filter(({ prompt }) => prompt.length >= 24);
    const results = await Promise.all(
      batch.map(({ prompt, greedy }) => continueGreedily(cluster.url, prompt, greedy.length)),
    );
    for (const [i, { ids }] of results.entries()) assert.deepEqual(ids, batch[i].greedy);
    assert.ok(
      (await metric(cluster.url, "vllm:num_preemptions_total")) > 0,
      "nothing was preempted",
    );
  });
});
