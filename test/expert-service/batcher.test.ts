import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { takeBatch, type QueuedDispatch } from "../../expert-service/batcher.ts";

const queued = (dispatchId: number, layer: number, numRows: number, epoch = 1): QueuedDispatch => ({
  stream: {},
  dispatchId,
  epoch,
  layer,
  payload: {
    rows: new Float32Array(numRows * 4),
    expertIds: new Uint16Array(numRows),
    topkWeights: new Float32Array(numRows),
  },
  receivedAt: 0,
  deadlineAt: 1000,
  onSums: () => {},
  onError: () => {},
});

const ids = (queue: readonly QueuedDispatch[]) => queue.map(({ dispatchId }) => dispatchId);

describe("the next run of a shard", () => {
  it("is the oldest dispatch and those of its layer and epoch that fit with it", () => {
    const queue = [
      queued(1, 5, 3),
      queued(2, 6, 1),
      queued(3, 5, 6),
      queued(4, 5, 4),
      queued(5, 5, 1, 2),
      queued(6, 5, 1),
    ];
    const { batch, rest } = takeBatch(queue, 4, 10);
    assert.deepEqual(ids(batch), [1, 3, 6]);
    assert.deepEqual(ids(rest), [2, 4, 5]);
  });

  it("is one dispatch alone where that is larger than a run", () => {
    const { batch, rest } = takeBatch([queued(1, 5, 30), queued(2, 5, 1)], 4, 10);
    assert.deepEqual(ids(batch), [1]);
    assert.deepEqual(ids(rest), [2]);
  });
});
