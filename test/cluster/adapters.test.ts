import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertAllGreedy, LOGPROB_TOLERANCE, logprobError } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { SWIFTSHADER } from "../support/swiftshader.ts";

describe("a cluster whose shards compute on different adapters", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2, shardEnv: [{}, SWIFTSHADER] });
  });
  after(() => cluster?.close());

  test("gives the goldens' log-probabilities and continuations", async () => {
    assert.match(cluster.shards[0].output(), /llvmpipe/);
    assert.match(cluster.shards[1].output(), /SwiftShader/);
    const goldens = await readTinyGoldens();
    for (const golden of goldens) {
      const error = await logprobError(cluster.url, golden);
      assert.ok(error <= LOGPROB_TOLERANCE, `off by ${error}`);
    }
    await assertAllGreedy(cluster.url, goldens);
  });
});
