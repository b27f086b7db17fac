import assert from "node:assert/strict";
import { test } from "node:test";

import {
  afterMove,
  firstStanding,
  standsFor,
} from "../../../../router-service/cluster/planning/standing.ts";

test("a placement is expected to stand as long as those before it did, within bounds", () => {
  const first = firstStanding(1_000);
  assert.equal(standsFor(first, 1_000), 120);
  assert.equal(standsFor(first, 1_600), 720, "one that stands says so before it ends");
  assert.equal(standsFor(first, 1e6), 3_600);
  let often = first;
  for (let at = 1_010; at <= 1_200; at += 10) often = afterMove(often, at);
  assert.equal(standsFor(often, 1_200), 30);
  let seldom = often;
  for (let at = 2_200; at <= 21_200; at += 1_000) seldom = afterMove(seldom, at);
  const stands = standsFor(seldom, 21_200);
  assert.ok(stands > 700 && stands < 1_000, `${stands}`);
});
