import assert from "node:assert/strict";
import { it } from "node:test";

import type { ModelOverlay } from "../../../../core/model/overlay.ts";
import { placementCrc } from "../../../../core/wire.ts";
import { shardPlacement } from "../../../../router-service/cluster/shards/shard-placement.ts";

const overlay: Pick<ModelOverlay, "formatOf"> = {
  formatOf: (layer, expert) => (layer === 3 && expert === 2 ? "int8" : undefined),
};
const stored = {
  placement: {
    epoch: 9,
    layers: new Map([
      [1, [[{ rank: 0, share: 1 }], [{ rank: 4, share: 1 }]]],
      [
        3,
        [
          [{ rank: 0, share: 1 }],
          [{ rank: 0, share: 1 }],
          [
            { rank: 0, share: 0.25 },
            { rank: 4, share: 0.75 },
          ],
        ],
      ],
    ]),
  },
  weights: "f16",
  experts: "int4-g32",
} as const;

it("tells each shard its own copies of every layer, with shares, formats and a checksum", () => {
  const message = shardPlacement(stored, 4, overlay as ModelOverlay, 7);
  assert.equal(message.epoch, 9);
  assert.equal(message.oldestLiveEpoch, 7);
  assert.equal(message.weights, 1);
  assert.equal(message.expertFormat, 4);
  assert.deepEqual(message.layers, [
    { layer: 1, experts: [{ expertId: 1, splitWeight: 1, format: 0 }] },
    { layer: 3, experts: [{ expertId: 2, splitWeight: 0.75, format: 3 }] },
  ]);
  assert.equal(message.crc32, placementCrc(message));
  assert.deepEqual(shardPlacement(stored, 5, undefined, 9).layers, []);
});
