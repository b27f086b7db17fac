import assert from "node:assert/strict";
import { test } from "node:test";

import { AwayShards } from "../../../../router-service/cluster/planning/away-shards.ts";

test("a grace runs from when the last shard went away, and starts anew for one that came back", () => {
  const away = new AwayShards();
  away.note([0], 0);
  away.note([0, 1], 400);
  assert.equal(away.graceLeft(700, 500), 600);
  away.note([0], 600);
  assert.equal(away.graceLeft(700, 600), 100);
  away.note([], 650);
  assert.equal(away.graceLeft(700, 650), 0);
});
