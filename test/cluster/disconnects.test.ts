import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { churn } from "../support/churn.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertAllGreedy } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";

describe("200 streaming requests, 32 at a time, whose clients leave at random moments", () => {
  let cluster: Cluster;
  before(async () => {
    // Looked at is the router: shards that compute sooner leave it the cores.
    cluster = await startCluster({ shards: 2, shardFlags: ["--device", "cpu"] });
  });
  after(() => cluster?.close());

  test("leave no block, no sequence and no memory behind", async () => {
    const growth = await churn(cluster, 200, 50);
    assert.ok(growth <= 0.05, `RSS is ${(growth * 100).toFixed(1)} % above request 50's`);
    await assertAllGreedy(cluster.url, await readTinyGoldens());
  });
});
