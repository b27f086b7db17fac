import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { DispatchErrorCode } from "../../../../proto/gen/switchyard/v1/expert.ts";
import {
  DispatchFailedError,
  DispatchTimeoutError,
  ShardLostError,
} from "../../../../router-service/cluster/errors.ts";
import {
  hedgeAfterMs,
  pauseMs,
  refusedForGood,
  resendReason,
  rowsToBlame,
  timeoutMs,
  UNTRIED,
  withFailure,
} from "../../../../router-service/cluster/dispatch/resend.ts";

const failed = (code: DispatchErrorCode) => new DispatchFailedError("shard 1", 2, code, "no");

describe("what a failed dispatch means", () => {
  for (const [error, reason] of [
    [new ShardLostError("shard 1", "reset"), "lost"],
    [new DispatchTimeoutError("shard 1", 2, 100), "timeout"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH), "wrong_epoch"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD), "wrong_epoch"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_CHECKSUM), "checksum"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_RESULT), "wrong_result"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_OVERLOADED), "overloaded"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_DEADLINE), "timeout"],
    [failed(DispatchErrorCode.DISPATCH_ERROR_CODE_INTERNAL), "refused"],
    [new RangeError("a fault of ours"), undefined],
  ] as const) {
    it(`${error.name} ${"code" in error ? error.code : ""}: ${reason ?? "not sent again"}`, () => {
      assert.equal(resendReason(error), reason);
    });
  }

  it("avoids the shard, and gives up after six refusals", () => {
    let history = UNTRIED;
    for (let i = 0; i < 5; i++) history = withFailure(history, i % 2, "refused");
    assert.deepEqual(history.avoid, new Set([0, 1]));
    assert.equal(refusedForGood(history), false);
    assert.equal(refusedForGood(withFailure(history, 1, "refused")), true);
    assert.equal(refusedForGood(withFailure(history, 1, "lost")), false);
  });

  it("blames the rows where two shards, or one three times, have wrong sums for them", () => {
    const once = withFailure(UNTRIED, 0, "wrong_result");
    assert.equal(rowsToBlame(once), false);
    assert.equal(rowsToBlame(withFailure(once, 1, "wrong_result")), true);
    const twice = withFailure(once, 0, "wrong_result");
    assert.equal(rowsToBlame(twice), false);
    assert.equal(rowsToBlame(withFailure(twice, 0, "wrong_result")), true);
  });

  it("waits for a forecast's multiple, within bounds, and longer each time that was too short", () => {
    assert.equal(hedgeAfterMs(undefined), 500);
    assert.equal(hedgeAfterMs(0.001), 100);
    assert.equal(hedgeAfterMs(0.5), 2000);
    assert.equal(timeoutMs(undefined, 2000, UNTRIED), 2000);
    assert.equal(timeoutMs(0.001, 2000, UNTRIED), 1000);
    assert.equal(timeoutMs(0.075, 2000, UNTRIED), 1500);
    assert.equal(timeoutMs(9, 2000, UNTRIED), 2000);
    assert.equal(timeoutMs(0.001, 2000, { ...UNTRIED, timeouts: 2 }), 4000);
    assert.equal(timeoutMs(9, 2000, { ...UNTRIED, timeouts: 40 }), 60_000);
    assert.deepEqual(
      [0, 1, 5, 50].map((rounds) => pauseMs({ ...UNTRIED, rounds })),
      [10, 20, 320, 1000],
    );
  });
});
