import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { NO_SLOT } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { EpochsInUse } from "../../expert-service/router-epochs.ts";
import { changeLayer, type Slot, type SlotExpert, slotsOf } from "../../core/residency/slots.ts";

const FORMATS: readonly ExpertFormat[] = ["f32", "int8"];

const loaded = (expert: number, format: ExpertFormat = "f32"): Slot => ({
  expert,
  format,
  loaded: true,
});
const empty = (expert: number, format: ExpertFormat = "f32"): Slot => ({
  expert,
  format,
  loaded: false,
});
const wanted = (...experts: number[]): SlotExpert[] =>
  experts.map((expert) => ({ expert, format: "f32" as const }));

describe("a layer's next slots", () => {
  it("are the present ones where experts take the places of others", () => {
    const change = changeLayer([loaded(3), loaded(5), loaded(7)], wanted(7, 4, 3));
    assert.deepEqual(change, { slots: [loaded(3), empty(4), loaded(7)], from: undefined });
  });

  it("are made anew in the order of experts where they are more or fewer", () => {
    assert.deepEqual(changeLayer([loaded(3), loaded(5)], wanted(5, 4, 1)), {
      slots: [empty(1), empty(4), loaded(5)],
      from: [NO_SLOT, NO_SLOT, 1],
    });
    assert.deepEqual(changeLayer([loaded(3), empty(5), loaded(7)], wanted(7, 5)), {
      slots: [empty(5), loaded(7)],
      from: [NO_SLOT, 2],
    });
  });

  it("keep a slot to its format", () => {
    const both: SlotExpert[] = [
      { expert: 1, format: "f32" },
      { expert: 1, format: "int8" },
    ];
    const { slots, from } = changeLayer([loaded(1), loaded(2)], both);
    assert.deepEqual(slots, [loaded(1), empty(1, "int8")]);
    assert.deepEqual(from, [0, NO_SLOT]);
    assert.deepEqual([...slotsOf(slots, both.slice(1), 3)], [NO_SLOT, 1, NO_SLOT]);
  });

  it("hold what is wanted once each and nothing else, and lose nothing that was loaded", () => {
    const experts = fc.uniqueArray(
      fc.record({ expert: fc.nat(9), format: fc.constantFrom(...FORMATS) }),
      { selector: ({ expert, format }) => `${expert} ${format}` },
    );
    const present = experts.chain((of) =>
      fc
        .array(fc.boolean(), { minLength: of.length, maxLength: of.length })
        .map((flags) => of.map((one, index): Slot => ({ ...one, loaded: flags[index] }))),
    );
    fc.assert(
      fc.property(present, experts, (before, want) => {
        const { slots, from } = changeLayer(before, want);
        const key = ({ expert, format }: { expert?: number; format: string }) =>
          `${expert} ${format}`;
        assert.deepEqual(slots.map(key).sort(), want.map(key).sort());
        for (const [index, slot] of slots.entries()) {
          const old = before.findIndex((one) => key(one) === key(slot));
          assert.equal(slot.loaded, before[old]?.loaded ?? false);
          if (from === undefined) assert.equal(before[index].format, slot.format);
          else assert.equal(from[index], slot.loaded ? old : NO_SLOT);
        }
        if (from === undefined) assert.equal(slots.length, before.length);
      }),
    );
  });
});

describe("the epochs of connected routers", () => {
  it("are over when all of them have gone on, and not when none is there", () => {
    const uses = new EpochsInUse();
    const [first, second] = [{}, {}];
    assert.equal(uses.isOver(1), false);
    uses.place(first, 1, 1);
    uses.place(second, 1, 1);
    uses.place(first, 2, 1);
    uses.release(first, 2);
    assert.equal(uses.isOver(1), false);
    assert.equal(uses.needs(1), true);
    assert.equal(uses.needs(1, second), false);
    uses.leave(second);
    assert.equal(uses.isOver(1), true);
    assert.equal(uses.isOver(2), false);
    uses.leave(first);
    assert.equal(uses.isOver(1), false, "a router may come back");
  });

  it("can not be released beyond what was placed", () => {
    const uses = new EpochsInUse();
    const router = {};
    assert.throws(
      () => uses.release(router, 1),
      /oldest_live_epoch 1, the newest placement is of 0/,
    );
    uses.place(router, 3, 9);
    assert.throws(() => uses.release(router, 4), RangeError);
    assert.equal(uses.needs(3), true);
    // The router went on to an epoch that this shard could not take.
    uses.place(router, 4, 3);
    uses.refuse(router, 4);
    assert.equal(uses.newest(router), 3);
    uses.release(router, 4);
    assert.equal(uses.needs(3), false);
  });
});
