import assert from "node:assert/strict";
import { test } from "node:test";

import { emptyDispatch, startEchoShards } from "../../../bench/hop/echo-floor.ts";
import { Dispatch } from "../../../proto/gen/switchyard/v1/expert.ts";

test("the echoed dispatch has the bytes of a real one", () => {
  const dispatch = emptyDispatch({ numRows: 2, hiddenSize: 192, topK: 4, wire: "f16" });
  const payload = 2 * 192 * 2 + 2 * 4 * 2 + 2 * 4 * 4;
  const bytes = Dispatch.encode(dispatch).finish().length;
  assert.ok(bytes > payload && bytes < payload + 64, `${bytes} bytes, payload ${payload}`);
});

test("every echo process answers every round trip", async (t) => {
  const echo = await startEchoShards(2);
  t.after(() => echo.close());
  for (const numRows of [1, 64]) {
    const ms = await echo.roundTrip({ numRows, hiddenSize: 192, topK: 4, wire: "f16" });
    assert.ok(ms > 0 && ms < 5000, `${ms} ms`);
  }
});
