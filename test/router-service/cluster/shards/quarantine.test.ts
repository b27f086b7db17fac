import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { Quarantine } from "../../../../router-service/cluster/shards/quarantine.ts";

describe("the quarantine of a shard", () => {
  it("is twice as long whenever the shard is wrong again soon, and short again after a while", () => {
    const one = new Quarantine();
    assert.equal(one.until(0), undefined);
    assert.equal(one.wrong(0), 2_000);
    assert.equal(one.until(1_999), 2_000);
    assert.equal(one.until(2_000), undefined);
    assert.equal(one.wrong(3_000), 4_000);
    assert.equal(one.wrong(8_000), 8_000);
    assert.equal(one.wrong(16_000 + 81_000), 2_000);
    let now = 200_000;
    for (let i = 0; i < 20; i++) now = one.wrong(now) + now;
    assert.equal(one.wrong(now), 300_000);
  });

  it("begins at the third checksum that fails within a minute", () => {
    const one = new Quarantine();
    assert.deepEqual(
      [0, 50_000, 61_000, 62_000].map((now) => one.checksum(now)),
      [undefined, undefined, undefined, 2_000],
    );
    assert.equal(one.until(63_000), 64_000);
  });

  it("is over where the shard was right after all", () => {
    const one = new Quarantine();
    one.wrong(0);
    one.forgive();
    assert.equal(one.until(1), undefined);
    assert.equal(one.wrong(10), 2_000);
  });
});
