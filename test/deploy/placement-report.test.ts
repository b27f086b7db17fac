import assert from "node:assert/strict";
import { test } from "node:test";

import { formatPlacement, type PlacementView } from "../../deploy/placement-report.ts";

const view: PlacementView = {
  epoch: 7,
  weights: "f16",
  experts: "int8",
  planned_by: "host-1",
  planned_at: "2026-01-01T00:00:00.000Z",
  why: "shard 2 is gone",
  stages_left: 1,
  unplaceable: null,
  lost: null,
  last_decision: null,
  redis_away: false,
  predicted_step_seconds: 0.00123,
  imbalance: 0.08,
  forecast: {
    tokens_per_step: 16,
    predictor_errors: { mix: 0.21, recent: 0.1, trend: 0.15, forecast: 0.09 },
  },
  next_layer: { on_same_shard: 0.347, by_chance: 0.331 },
  shards: [
    {
      rank: 0,
      experts: 3,
      bytes: 3 * 2 ** 20,
      memory_bytes: 2 ** 30,
      seconds_per_step: 0.001,
      state: "ready",
      loss: { experts_without_copy: 2, seconds: 1.5, experts_without_room: 0 },
    },
    {
      rank: 4,
      experts: 1,
      bytes: 2 ** 20,
      memory_bytes: 2 ** 30,
      seconds_per_step: 0.0005,
      state: "draining",
      loss: { experts_without_copy: 1, seconds: null, experts_without_room: 1 },
    },
    {
      rank: "local",
      experts: 1,
      bytes: 2 ** 20,
      memory_bytes: 2 ** 30,
      seconds_per_step: 0,
      loss: null,
    },
  ],
  layers: [
    {
      layer: 1,
      predictor: "recent",
      seconds: [0.001, 0.0005, 0],
      experts: [
        [{ rank: 0, share: 1 }],
        [{ rank: 0, share: 1 }],
        [
          { rank: 0, share: 0.5 },
          { rank: 4, share: 0.25 },
          { rank: "local", share: 0.25 },
        ],
      ],
    },
  ],
};
const ESCAPE = "\u001b";
const style = { width: 80, colour: false, now: Date.parse("2026-01-01T00:00:30Z") };

test("a placement is shown with why, heat and experts per layer and shard, and what each loss takes", () => {
  const lines = formatPlacement(view, style).split("\n");
  const text = lines.join("\n");
  assert.equal(lines[0], "epoch 7, planned by host-1, 30.0 s ago; 1 stage of its move to come");
  assert.match(text, /why: shard 2 is gone/);
  assert.match(text, /expected to take 1\.23 ms, imbalance of the shards 0\.08/);
  assert.match(
    text,
    /^forecast of .* experts, by 9\.0 % of its load; its predictors: recent 10\.0 % \(best in 1 layer\), trend 15\.0 %, mix 21\.0 %$/m,
  );
  assert.match(text, /in one layer and the next, 35 % are on one shard, by chance 33 %$/m);
  assert.match(text, /^layer +0 +4 +local$/m);
  assert.match(text, /^1 +██ +3 +▒▒ +1 +░░ +1$/m);
  assert.match(
    text,
    /^0 +3 +3\.00 MiB +1\.00 GiB +1\.00 ms +2 experts are elsewhere within 1\.50 s$/m,
  );
  assert.match(text, /^4 draining .*1 of 1 experts have no room elsewhere$/m);
  assert.match(text, /^local .*it is the router itself$/m);
  assert.ok(!text.includes(ESCAPE));
});

test("experts without a living copy are said first, with who is away and why, and no times that mean nothing", () => {
  const [ready, , local] = view.shards;
  const lost: PlacementView = {
    ...view,
    predicted_step_seconds: null,
    imbalance: null,
    next_layer: null,
    unplaceable: "1 layers of 3 experts take 3 bytes; 1 shards offer 2 bytes",
    last_decision: "shard 4 is gone, 1 experts have no copy",
    lost: { experts: 2, experts_without_room: 1, reason: "shard host:1: refused" },
    shards: [
      { ...ready, seconds_per_step: null },
      { ...local, seconds_per_step: null },
      {
        rank: 4,
        experts: 2,
        bytes: null,
        memory_bytes: null,
        seconds_per_step: null,
        state: "away",
        reason: "connection refused",
        loss: null,
      },
    ],
    layers: [{ ...view.layers[0], seconds: null }],
  };
  const text = formatPlacement(lost, style);
  const [, said] = text.split("\n");
  assert.equal(
    said,
    "2 of 3 experts have no living copy, 1 of them no room on the shards that are there",
  );
  assert.match(text, /^can not be placed: 1 layers of 3 experts take 3 bytes/m);
  assert.match(text, /^last look: shard 4 is gone, 1 experts have no copy$/m);
  assert.match(text, /^4 away +2 +- +- +- +it is away: connection refused$/m);
  assert.match(text, /^layer +0 +local +4$/m);
  assert.match(text, /^1 +░░ +3 +░░ +1 +×× +1$/m);
  assert.match(formatPlacement(lost, { ...style, width: 20 }), /^1 {6}░░×$/m);
  assert.doesNotMatch(text, /per step .*s |expected to take|statistics/);
});

test("it is said where the routers' Redis is away, and only there", () => {
  const AWAY = /^Redis is away: this router plans alone, only what can not wait$/m;
  assert.doesNotMatch(formatPlacement(view, style), /Redis/);
  assert.match(formatPlacement({ ...view, redis_away: true }, style), AWAY);
});

test("colours come only where asked for, and a narrow terminal gets one character per shard", () => {
  const coloured = formatPlacement(view, { ...style, colour: true });
  assert.ok(coloured.includes(`${ESCAPE}[38;5;160m██   3${ESCAPE}[0m`));
  assert.match(formatPlacement(view, { ...style, width: 20 }), /^1 {6}█▒░$/m);
});
