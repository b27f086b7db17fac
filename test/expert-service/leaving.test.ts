import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { Leaving } from "../../expert-service/leaving.ts";

const NO_ROOM = "1 layer of 12 experts takes 9 bytes; 0 shards offer 0 bytes, 1 more is draining";

describe("a shard's leaving", () => {
  function started() {
    const said: string[] = [];
    const shard = { needed: true, routers: 1 };
    const note = (level: string) => (facts: object | string, message?: string) =>
      said.push(
        typeof facts === "string"
          ? `${level} ${facts}`
          : `${level} ${message} ${JSON.stringify(facts)}`,
      );
    const leaving = new Leaving({
      isNeeded: () => shard.needed,
      numRouters: () => shard.routers,
      held: () => ({ experts: 36, residentBytes: 900 }),
      onChange: () => {},
      logger: { info: note("info"), warn: note("warn") },
    });
    return { said, shard, leaving };
  }

  it("says once that it may be terminated, and again after it was to stay or was needed", () => {
    const { said, shard, leaving } = started();
    leaving.set(true);
    leaving.look();
    assert.deepEqual(said, ['info drain {"draining":true}']);
    shard.needed = false;
    leaving.look();
    leaving.look();
    assert.deepEqual(said.splice(0), ['info drain {"draining":true}', "info safe to terminate"]);
    leaving.set(false);
    leaving.set(true);
    assert.equal(said.splice(0).at(-1), "info safe to terminate");
    // The link to its router broke, and the router is back.
    shard.needed = true;
    leaving.look();
    assert.deepEqual(said, []);
    shard.needed = false;
    leaving.look();
    assert.deepEqual(said, ["info safe to terminate"]);
  });

  it("does not stay once its process is to end", async () => {
    const { said, shard, leaving } = started();
    const end = leaving.wait(5000);
    leaving.set(false);
    assert.ok(leaving.draining);
    const refused = "warn drain is not cancelled: the process was told to end ";
    assert.deepEqual(said.splice(1), [`${refused}{"leavesInSeconds":5}`]);
    shard.needed = false;
    assert.deepEqual(await end, { inOrder: true, reason: "nothing is placed on it" });
  });

  it("warns once of each reason why nothing has room, with what it holds and how long it waits", async () => {
    const { said, shard, leaving } = started();
    leaving.tell(NO_ROOM);
    assert.deepEqual(said, [], "it is not to leave");
    leaving.set(true);
    leaving.tell(NO_ROOM);
    leaving.tell(NO_ROOM);
    const warning = "warn no shard that stays has room for what this one holds: it serves on";
    const facts = { reason: NO_ROOM, experts: 36, residentBytes: 900 };
    assert.deepEqual(said.splice(0), [
      'info drain {"draining":true}',
      `${warning} ${JSON.stringify(facts)}`,
    ]);
    const end = await leaving.wait(100);
    assert.deepEqual(said, [`${warning} ${JSON.stringify({ ...facts, leavesInSeconds: 0.1 })}`]);
    assert.deepEqual(end, { inOrder: false, reason: "not released within 0.1 s" });
    shard.needed = false;
    leaving.look();
    assert.equal(said.length, 1, "its routers are cut off, not served by others");
    leaving.tell("");
    assert.equal(said.at(-1), "info another shard has room now");
  });
});
