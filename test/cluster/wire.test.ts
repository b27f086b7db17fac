import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { continueGreedily } from "../../bench/rig/api.ts";
import { DEMO_MODEL, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { readDemoGoldens } from "../support/goldens.ts";

const goldens = await readDemoGoldens(["facts", "chat", "maths", "books"]);

describe("the default wire and weights", () => {
  let cluster: Cluster | undefined;
  after(() => cluster?.close());

  test("give the same text with 2 and 3 shards as with all experts on the router", async () => {
    const texts: (readonly number[])[][] = [];
    for (const shards of [0, 2, 3]) {
      cluster = await startCluster({ shards, model: DEMO_MODEL, weights: "auto", wire: "f16" });
      const { url } = cluster;
      const answers = goldens.map((golden) => continueGreedily(url, golden.token_ids, 24));
      texts.push((await Promise.all(answers)).map(({ ids }) => ids));
      await cluster.close();
    }
    const [local, two, three] = texts;
    assert.ok(local.every((ids) => ids.length === 24));
    assert.deepEqual(two, local);
    assert.deepEqual(three, local);
  });
});
