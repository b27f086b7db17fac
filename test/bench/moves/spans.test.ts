import assert from "node:assert/strict";
import { test } from "node:test";

import { MoveLog } from "../../../bench/moves/move-log.ts";
import { gapsAtRest, gapsInMoves, movesOf } from "../../../bench/moves/spans.ts";

const logLine = (seconds: number, msg: string) =>
  JSON.stringify({ level: "info", time: new Date(seconds * 1000).toISOString(), msg, epoch: 1 });

test("a placement is on its way from its decision to its adoption, or to the decision that takes its place", () => {
  const lines = [
    logLine(10, "placement decided"),
    "not a log line",
    logLine(10.5, "something else"),
    logLine(11, "placement adopted"),
    logLine(20, "placement decided"),
    logLine(22, "placement decided"),
    logLine(23, "placement adopted"),
    logLine(30, "placement decided"),
  ];
  const log = new MoveLog();
  for (const line of lines) log.hear("router 0", line);
  assert.deepEqual(log.adoptions(8_000), [
    { from: 2_000, to: 3_000 },
    { from: 12_000, to: 14_000 },
    { from: 14_000, to: 15_000 },
    { from: 22_000, to: Infinity },
  ]);
});

test("what a shard read for its moves is what it read since its first placement", () => {
  const log = new MoveLog();
  assert.equal(log.bytesRead("shard 1"), 0);
  for (const [name, bytes] of [
    ["shard 1", 1_000],
    ["shard 2", 3_000],
    ["shard 1", 1_000],
    ["shard 1", 1_700],
  ] as const) {
    log.hear(name, JSON.stringify({ msg: "placement resident", checkpointBytesRead: bytes }));
  }
  assert.deepEqual([log.bytesRead("shard 1"), log.bytesRead("shard 2")], [700, 0]);
});

test("a join is a move while experts are loaded, a drain from when it is asked for", () => {
  const adoptions = [
    { from: 10, to: 20 },
    { from: 40, to: 50 },
    { from: 60, to: 70 },
  ];
  assert.deepEqual(movesOf({ kind: "join", from: 0, to: 30 }, adoptions), [{ from: 10, to: 20 }]);
  assert.deepEqual(movesOf({ kind: "drain", from: 35, to: 75 }, adoptions), [{ from: 35, to: 70 }]);
  assert.deepEqual(movesOf({ kind: "drain", from: 80, to: 90 }, adoptions), [{ from: 80, to: 80 }]);
});

test("a gap that a move begins or ends in is the move's, one that rest begins or ends in is nobody's", () => {
  const gaps = [
    [0, 5],
    [5, 12],
    [12, 18],
    [18, 25],
    [25, 30],
    [30, 45],
  ].map(([from, to]) => ({ from, to, isDecode: true }));
  const moves = [{ from: 10, to: 20 }];
  assert.deepEqual(gapsInMoves(gaps, moves), gaps.slice(1, 4));
  assert.deepEqual(gapsAtRest(gaps, [{ from: 4, to: 40 }], moves), [gaps[4]]);
});
