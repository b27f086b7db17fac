import assert from "node:assert/strict";
import { test } from "node:test";

import { planBodySchema } from "../../../router-service/api/placement-schemas.ts";
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
