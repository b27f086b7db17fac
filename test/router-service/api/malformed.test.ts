import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import fc from "fast-check";

import { chatSchema, completionSchema } from "../../../router-service/api/openai-schemas.ts";
import { type Doors, openDoors, VOCAB } from "./doors.ts";

let doors: Doors;

before(async () => {
  doors = await openDoors({ engine: { maxModelLen: 32 } });
});
after(() => doors.close());

const ROUTES = {
  "/v1/chat/completions": {
    base: { messages: [{ role: "user", content: "hi" }], max_tokens: 2 },
    fields: Object.keys(chatSchema.shape),
  },
  "/v1/completions": {
    base: { prompt: "hi", max_tokens: 2 },
    fields: Object.keys(completionSchema.shape),
  },
  "/tokenize": { base: { prompt: "hi" }, fields: ["prompt", "messages", "add_special_tokens"] },
  "/detokenize": { base: { tokens: [1, 2] }, fields: ["tokens", "model"] },
} as const;

/** Any JSON value, with numbers and strings that are near the limits more often than chance has them. */
const anyValue = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.constantFrom(-1, 0, 1, 2, 16, 17, 20, 21, 1.5, 1e308, -1e308, 2 ** 53, VOCAB - 1, VOCAB),
  fc.constantFrom("", "a", "\u0000", "\ud800", "<|im_start|>", "__proto__", "demo"),
  fc.array(fc.oneof(fc.integer(), fc.string()), { maxLength: 5 }),
  fc.constant({ ["__proto__"]: { polluted: true }, constructor: 1 }),
);

/** Fails unless the answer is a valid one, an event stream, or an error with all four keys that is the client's fault. */
function assertSane(route: string, status: number, body: unknown): void {
  if (status === 200) {
    assert.ok(typeof body === "string" ? body.endsWith("data: [DONE]\n\n") : body, route);
    return;
  }
  assert.equal(status, 400, JSON.stringify(body));
  const { error } = body as { error: Record<string, unknown> };
  assert.deepEqual(Object.keys(error).toSorted(), ["code", "message", "param", "type"]);
  assert.equal(typeof error["message"], "string");
}

for (const [route, { base, fields }] of Object.entries(ROUTES)) {
  test(`${route} answers any value in any field with 200 or an error that is the client's`, async () => {
    const names = fc.oneof(fc.constantFrom(...fields), fc.string({ maxLength: 20 }));
    await fc.assert(
      fc.asyncProperty(fc.dictionary(names, anyValue, { maxKeys: 3 }), async (changes) => {
        const { status, body } = await doors.post(route, { ...base, ...changes });
        if (status !== 404) assertSane(route, status, body);
        else assert.equal((body as { error: { param: string } }).error.param, "model");
      }),
      { numRuns: 150 },
    );
    assert.equal((await doors.post(route, base)).status, 200, "the next request works");
    assert.deepEqual(doors.engine.state().running, 0);
    assert.ok(!("polluted" in {}));
  });
}

test("any bytes as a body are answered with an error that is the client's", async () => {
  const valid = Buffer.from('{"prompt":"hi","max_tokens":1}');
  const flipped = fc
    .tuple(fc.nat(valid.length - 1), fc.integer({ min: 1, max: 255 }))
    .map(([at, bits]) => Buffer.from(valid.map((byte, i) => (i === at ? byte ^ bits : byte))));
  const bodies = fc.oneof(fc.uint8Array({ maxLength: 64 }), flipped);
  await fc.assert(
    fc.asyncProperty(bodies, async (bytes) => {
      const { status, body } = await doors.post("/v1/completions", Buffer.from(bytes));
      assertSane("/v1/completions", status, body);
    }),
    { numRuns: 150 },
  );
  const next = await doors.post("/v1/completions", { prompt: "hi", max_tokens: 1 });
  assert.equal(next.status, 200);
});
