import assert from "node:assert/strict";
import { test } from "node:test";

import { LOCAL_RANK } from "../../../../core/placement/placement.ts";
import {
  decodePlacement,
  encodePlacement,
  type StoredPlacement,
  StoredPlacementError,
} from "../../../../router-service/cluster/planning/stored-placement.ts";

const stored: StoredPlacement = {
  placement: {
    epoch: 7,
    layers: new Map([
      [1, [[{ rank: 0, share: 1 }], [{ rank: 1, share: 1 }]]],
      [
        3,
        [
          [
            { rank: 0, share: 0.25 },
            { rank: 2, share: 0.125 },
            { rank: LOCAL_RANK, share: 0.625 },
          ],
          [
            { rank: 1, share: 0 },
            { rank: 2, share: 1 },
          ],
        ],
      ],
    ]),
  },
  weights: "f16",
  experts: "int4-g32",
  plannedBy: "router 1",
  why: "shard 3 is lost",
  at: 1_790_000_000_000,
  stagesLeft: 2,
};

test("a placement comes back as it was stored", () => {
  assert.deepEqual(decodePlacement(encodePlacement(stored)), stored);
});

test("shares that are no whole millionths still sum to 1", () => {
  const third = { ...stored.placement, layers: new Map([[0, [thirds()]]]) };
  const read = decodePlacement(encodePlacement({ ...stored, placement: third }));
  const shares = read.placement.layers.get(0)?.[0].map(({ share }) => share) ?? [];
  assert.deepEqual(shares, [0.333333, 0.333333, 0.333334]);
});

function thirds() {
  return [0, 1, 2].map((rank) => ({ rank, share: 1 / 3 }));
}

test("61 layers of 256 experts, a quarter of them with a second copy, take less than 1 MB", () => {
  const layer = Array.from({ length: 256 }, (_, expert) =>
    expert % 4 === 0
      ? [
          { rank: expert, share: 0.123456 },
          { rank: expert + 64, share: 0.876544 },
        ]
      : [{ rank: expert, share: 1 }],
  );
  const layers = new Map(Array.from({ length: 61 }, (_, index) => [index + 3, layer]));
  const text = encodePlacement({ ...stored, placement: { epoch: 1, layers } });
  assert.ok(text.length < 1_000_000, `${text.length} bytes`);
  assert.deepEqual(decodePlacement(text).placement.layers, layers);
});

const body = JSON.parse(encodePlacement(stored)) as Record<string, unknown>;
const MISTAKES: readonly [what: string, text: string, said: RegExp][] = [
  ["no JSON", "{", /can not be read: .*JSON/],
  ["no object", "3", /the whole: .*object/],
  ["another version", JSON.stringify({ ...body, version: 2 }), /version: .*1/],
  ["no epoch", JSON.stringify({ ...body, epoch: 0 }), /epoch: .*1/],
  ["an unknown dtype", JSON.stringify({ ...body, weights: "f8" }), /weights: .*f16/],
  ["an unknown format", JSON.stringify({ ...body, experts: "int3" }), /experts: .*mxfp4/],
  ["no layers", JSON.stringify({ ...body, layers: null }), /layers: /],
  [
    "an expert without copies",
    JSON.stringify({ ...body, layers: { 4: [0, []] } }),
    /layers\.4\.1: /,
  ],
];

for (const [what, text, said] of MISTAKES) {
  test(`a stored placement with ${what} is refused by what is wrong`, () => {
    assert.throws(
      () => decodePlacement(text),
      (error) => error instanceof StoredPlacementError && said.test(error.message),
    );
  });
}
