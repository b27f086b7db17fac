import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";

import { Availability } from "../../../router-service/cluster/availability.ts";

const WELL = { missing: undefined, staying: true, planned: true };
const LOST = { missing: "shard 0: gone", staying: true, planned: true };
const ALONE = { missing: "shard 0: gone", staying: false, planned: false };

describe("requests whose experts have no living copy", () => {
  function started(t: TestContext) {
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const availability = new Availability(() => {}, 5_000);
    availability.note(WELL);
    t.after(() => availability.close());
    return { availability, pass: (ms: number) => t.mock.timers.tick(ms) };
  }

  it("are refused at once before experts first had copies, and not at all where they have them", () => {
    const availability = new Availability(() => {});
    availability.note(LOST);
    assert.equal(availability.refusal(), LOST.missing);
    assert.equal(availability.hopeless(), LOST.missing);
    availability.note(WELL);
    availability.setUnplaceable("no room");
    assert.equal(availability.refusal(), undefined);
    assert.equal(availability.hopeless(), undefined);
    availability.close();
  });

  it("end where shards stay without room, five seconds after the loss, however long that was known", (t) => {
    const { availability, pass } = started(t);
    availability.setUnplaceable("1 shard offers 3 bytes, 1 more is draining");
    pass(30_000);
    availability.note(LOST);
    assert.equal(availability.hopeless(), undefined);
    availability.setUnplaceable("1 shard offers 3 bytes");
    pass(4_999);
    assert.equal(availability.refusal(), undefined);
    pass(1);
    assert.equal(availability.hopeless(), "1 shard offers 3 bytes");
    assert.equal(availability.refusal(), "1 shard offers 3 bytes");
    availability.note(WELL);
    assert.equal(availability.refusal(), undefined);
  });

  it("wait where no shard stays, whether the last one was killed or told to leave; new ones are refused after 5 s", (t) => {
    for (const leaves of [false, true]) {
      const { availability, pass } = started(t);
      if (leaves) {
        availability.note({ missing: undefined, staying: false, planned: false });
        availability.setUnplaceable("0 shards offer 0 bytes, 1 more is draining");
        pass(30_000);
      }
      availability.note(ALONE);
      pass(4_999);
      assert.equal(availability.refusal(), undefined);
      pass(1);
      assert.equal(availability.refusal(), ALONE.missing);
      availability.setUnplaceable("0 shards offer 0 bytes");
      pass(600_000);
      assert.equal(availability.hopeless(), undefined);
      assert.equal(availability.refusal(), ALONE.missing);
      t.mock.timers.reset();
    }
  });

  it("wait for the only shard while it is in quarantine, and new ones with them", (t) => {
    const { availability, pass } = started(t);
    availability.note({ missing: "it is in quarantine", staying: true, planned: false });
    availability.setUnplaceable("0 shards offer 0 bytes");
    pass(600_000);
    assert.equal(availability.hopeless(), undefined);
    assert.equal(availability.refusal(), undefined);
  });

  it("wait five seconds more when a shard without room is the first to come back, while new ones are still refused", (t) => {
    const { availability, pass } = started(t);
    availability.note(ALONE);
    availability.setUnplaceable("0 shards offer 0 bytes");
    pass(60_000);
    availability.note(LOST);
    availability.setUnplaceable("1 shard offers 3 bytes");
    assert.equal(availability.hopeless(), undefined);
    assert.equal(availability.refusal(), LOST.missing);
    pass(5_000);
    assert.equal(availability.hopeless(), "1 shard offers 3 bytes");
  });
});
