import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { type Doors, openDoors } from "./doors.ts";

let doors: Doors;

before(async () => {
  doors = await openDoors();
});
after(() => doors.close());

const user = { role: "user", content: "hi" };
const chat = (fields: object) => ({ messages: [user], ...fields });
const completion = (fields: object) => ({ prompt: "hi", max_tokens: 1, ...fields });

test("null is absent, and values that change nothing are taken", async () => {
  const fields = {
    temperature: null,
    stop: null,
    logprobs: null,
    logit_bias: null,
    stream_options: null,
    tools: [],
    tool_choice: "none",
    response_format: { type: "text" },
    best_of: 1,
    suffix: "",
    user: "me",
    max_tokens: 1,
  };
  assert.equal((await doors.post("/v1/chat/completions", chat(fields))).status, 200);
  assert.deepEqual(doors.logged, []);
});

test("unknown fields are ignored with one warning", async () => {
  const answer = await doors.post("/v1/completions", completion({ foo: 1, bar: [] }));
  assert.equal(answer.status, 200);
  assert.equal(doors.logged.length, 1);
  assert.deepEqual(doors.logged.pop()?.facts, { fields: ["foo", "bar"], count: 2 });
});

test("unknown fields inside of others are ignored with one warning, what a client sends back of an answer without", async () => {
  const part = { type: "text", text: "hi", cache_control: {} };
  const back = {
    role: "assistant",
    content: "x",
    refusal: null,
    annotations: [],
    audio: null,
    tool_calls: null,
    reasoning_content: "",
  };
  const good = { messages: [user, back], stream_options: { include_obfuscation: false } };
  const ask = { max_tokens: 1, stream: true };
  assert.equal((await doors.post("/v1/chat/completions", { ...ask, ...good })).status, 200);
  assert.deepEqual(doors.logged, []);
  const strange = {
    messages: [
      { ...user, name: "Ann" },
      { role: "user", content: [part], name: "Bob" },
    ],
    stream_options: { include_usage: true, include_prices: true },
  };
  assert.equal((await doors.post("/v1/chat/completions", { ...ask, ...strange })).status, 200);
  assert.deepEqual(
    doors.logged.map(({ facts }) => facts),
    [
      {
        fields: [
          "messages[].name",
          "messages[].content[].cache_control",
          "stream_options.include_prices",
        ],
        count: 3,
      },
    ],
  );
  doors.logged.length = 0;
});
