import assert from "node:assert/strict";
import { test } from "node:test";

import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { planBodySchema, whatIfOf } from "../../../router-service/api/placement-schemas.ts";
import { parseBody } from "../../../router-service/api/request-body.ts";

const parse = (body: unknown) => parseBody(planBodySchema, body, { warn: () => undefined });

test("a field that a what-if has not is refused by its whole name, with those that there are", () => {
  for (const [body, param, message] of [
    [{ foo: 1 }, "foo", /^foo: is no field here, there are shards, tokens_per_step, load, /],
    [
      { shards: [{ rank: 0 }, { rank: 1, memory: 3 }] },
      "shards[1].memory",
      /^shards\[1\]\.memory: is no field here, there are rank, memory_bytes, /,
    ],
  ] as const) {
    assert.throws(() => parse(body), { name: "InvalidRequestError", param, message });
  }
});

test("a what-if takes `local` where it takes a shard's rank, and whole bytes", () => {
  const shards = [
    { rank: "local", memory_bytes: 10737.41824 },
    { rank: 3, absent: true },
  ];
  const supposed = whatIfOf(parse({ shards })).shards ?? [];
  assert.deepEqual(
    supposed.map(({ rank, memoryBytes }) => [rank, memoryBytes]),
    [
      [LOCAL_RANK, 10737],
      [3, undefined],
    ],
  );
  for (const rank of ["Local", -1, 1.5, LOCAL_RANK]) {
    assert.throws(() => parse({ shards: [{ rank }] }), {
      param: "shards[0].rank",
      message: `shards[0].rank: expected an integer from 0 to 65533 or "local", got ${JSON.stringify(rank)}`,
    });
  }
  assert.throws(() => parse({ shards: [{ absent: true }] }), {
    message: 'shards[0].rank: is missing, expected an integer from 0 to 65533 or "local"',
  });
});

test("what is next to nothing is refused where costs are divided by it", () => {
  for (const value of [0, 1e-300]) {
    assert.throws(() => parse({ shards: [{ rank: 0, bytes_per_second: value }] }), {
      message: `shards[0].bytes_per_second: ${value} is out of range, expected at least 1`,
    });
  }
});
