import assert from "node:assert/strict";
import { test } from "node:test";

import { driverThreads } from "../../deploy/driver-threads.ts";

test("processes share the cores, and a process alone keeps the driver's own choice", () => {
  assert.equal(driverThreads(2, 1), undefined);
  assert.equal(driverThreads(64, 1), undefined);
  assert.equal(driverThreads(8, 2), "4");
  assert.equal(driverThreads(8, 3), "2");
});

test("a driver with less than two cores for itself has no threads", () => {
  assert.equal(driverThreads(2, 2), "0");
  assert.equal(driverThreads(2, 3), "0");
  assert.equal(driverThreads(5, 3), "0");
});
