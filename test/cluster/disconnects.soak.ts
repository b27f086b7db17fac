import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { churn } from "../support/churn.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";

describe("5000 streaming requests whose clients leave at random moments", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2 });
  });
  after(() => cluster?.close());

  test("need no more memory in the second half than in the first", async () => {
    const growth = await churn(cluster, 5000, 2500);
    assert.ok(growth <= 0.02, `RSS is ${(growth * 100).toFixed(1)} % above request 2500's`);
  });
});
