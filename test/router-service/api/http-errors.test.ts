import assert from "node:assert/strict";
import { connect } from "node:net";
import { after, before, test } from "node:test";

import {
  QueueFullError,
  RequestTimeoutError,
  UnavailableError,
} from "../../../router-service/engine/errors.ts";
import type { Engine } from "../../../router-service/engine/request.ts";
import { type Answer, type Doors, openDoors, VOCAB } from "./doors.ts";

const BODY_LIMIT = 64 * 1024;

/** What is said of the first token id beyond the vocabulary. */
const BEYOND = new RegExp(`${VOCAB} .* vocabulary of ${VOCAB}`, "u");

let doors: Doors;

before(async () => {
  doors = await openDoors({ api: { limits: { bodyBytes: BODY_LIMIT } } });
});
after(() => doors.close());

/** Fails unless the answer is an error in OpenAI's shape with all four keys, and that status, param and code. */
function assertError(answer: Answer, status: number, param: string | null, code?: string): void {
  assert.equal(answer.status, status, JSON.stringify(answer.body));
  const { error } = answer.body as { error: Record<string, unknown> };
  assert.deepEqual(Object.keys(error).toSorted(), ["code", "message", "param", "type"]);
  assert.ok(typeof error["message"] === "string" && error["message"].length > 0);
  assert.equal(typeof error["type"], "string");
  assert.equal(error["param"], param, error["message"]);
  if (code !== undefined) assert.equal(error["code"], code);
}

const chat = (fields: object) => ({ messages: [{ role: "user", content: "hi" }], ...fields });
const completion = (fields: object) => ({ prompt: "hi", max_tokens: 1, ...fields });

const user = { role: "user", content: "hi" };

/** A bad field of a chat body, and the name that the error must have for it. */
const BAD_CHAT: [fields: object, param: string, message: RegExp][] = [
  [{ messages: undefined }, "messages", /is missing/],
  [{ messages: null }, "messages", /is missing/],
  [{ messages: [] }, "messages", /0 entries, expected at least 1/],
  [{ messages: "hi" }, "messages", /expected array, got "hi"/],
  [{ messages: [{ role: "robot", content: "x" }] }, "messages[0].role", /"assistant", got "robot"/],
  [{ messages: [{ role: "user", content: 3 }] }, "messages[0].content", /text parts, got 3/],
  [{ messages: [{ role: "user" }] }, "messages[0].content", /is missing/],
  [
    { messages: [{ role: "user", content: [{ type: "image_url" }] }] },
    "messages[0].content[0].type",
    /expected "text", got "image_url"/,
  ],
  [
    { messages: [{ role: "assistant", content: "", tool_calls: [{}] }] },
    "messages[0].tool_calls",
    /1 entries, expected at most 0/,
  ],
  [{ model: 3 }, "model", /expected string, got 3/],
  [{ temperature: "hot" }, "temperature", /expected number, got "hot"/],
  [{ temperature: -0.1 }, "temperature", /-0.1 .* at least 0/],
  [{ top_p: 0 }, "top_p", /0 .* more than 0/],
  [{ top_p: 1.5 }, "top_p", /1.5 .* at most 1/],
  [{ top_k: 1.5 }, "top_k", /expected integer, got 1.5/],
  [{ top_k: -2 }, "top_k", /-2 .* at least -1/],
  [{ min_p: 2 }, "min_p", /2 .* at most 1/],
  [{ repetition_penalty: 0 }, "repetition_penalty", /0 .* more than 0/],
  [{ frequency_penalty: 2.5 }, "frequency_penalty", /2.5 .* at most 2/],
  [{ presence_penalty: -3 }, "presence_penalty", /-3 .* at least -2/],
  [{ logit_bias: { x: 1 } }, "logit_bias.x", /is not a token id/],
  [{ logit_bias: { 5: 101 } }, "logit_bias.5", /101 .* at most 100/],
  [{ logit_bias: { [VOCAB]: 1 } }, `logit_bias.${VOCAB}`, BEYOND],
  [{ seed: 1.5 }, "seed", /expected integer, got 1.5/],
  [{ seed: 2 ** 60 }, "seed", /at most 9007199254740991/],
  [{ stop: ["a", "b", "c", "d", "e"] }, "stop", /5 entries, expected at most 4/],
  [{ stop: "" }, "stop[0]", /0 characters, expected at least 1/],
  [{ stop: [3] }, "stop[0]", /expected string, got 3/],
  [{ stop_token_ids: [9999] }, "stop_token_ids[0]", /9999 .* vocabulary/],
  [{ n: 0 }, "n", /0 .* at least 1/],
  [{ n: 17 }, "n", /17 .* at most 16/],
  [{ max_tokens: 0 }, "max_tokens", /0 .* at least 1/],
  [{ max_tokens: 5, min_tokens: 6 }, "min_tokens", /6 is more than the 5/],
  [{ max_tokens: 256 }, "max_tokens", /context is 256 tokens, but \d+ were requested/],
  [{ max_completion_tokens: 256 }, "max_completion_tokens", /context is 256 tokens/],
  [{ top_logprobs: 2 }, "top_logprobs", /needs logprobs/],
  [{ logprobs: true, top_logprobs: 21 }, "top_logprobs", /21 .* at most 20/],
  [{ logprobs: 3 }, "logprobs", /expected boolean, got 3/],
  [{ stream_options: { include_usage: true } }, "stream_options", /needs stream/],
  [{ stream: true, stream_options: 1 }, "stream_options", /expected object/],
  [{ stream: true, prompt_logprobs: 1 }, "prompt_logprobs", /stream/],
  [{ stream: "yes" }, "stream", /expected boolean, got "yes"/],
  [{ response_format: { type: "json_object" } }, "response_format", /not supported/],
  [{ response_format: { type: "text", json_schema: {} } }, "response_format", /not supported/],
  [
    { messages: [user, { role: "assistant", content: "x", reasoning_content: "I think" }] },
    "messages[1].reasoning_content",
    /not supported \(got "I think"\)/,
  ],
  [
    { messages: [{ ...user, tool_call_id: "call_1" }] },
    "messages[0].tool_call_id",
    /not supported/,
  ],
  [
    { stream: true, stream_options: { continuous_usage_stats: true } },
    "stream_options.continuous_usage_stats",
    /not supported \(got true\)/,
  ],
  [{ tool_choice: "required" }, "tool_choice", /not supported \(got "required"\)/],
  [{ functions: [{}] }, "functions", /not supported/],
  [{ modalities: ["text", "audio"] }, "modalities", /not supported/],
  [{ audio: { voice: "x" } }, "audio", /not supported/],
  [{ prediction: { type: "content", content: "" } }, "prediction", /not supported/],
  [{ guided_regex: "a+" }, "guided_regex", /not supported/],
  [{ chat_template: "{{x}}" }, "chat_template", /not supported/],
];

test("a bad field of a chat body names itself with its value and the limit", async () => {
  for (const [fields, param, message] of BAD_CHAT) {
    const answer = await doors.post("/v1/chat/completions", chat(fields));
    assertError(answer, 400, param);
    assert.match(answer.body.error.message, message);
  }
});

const BAD_COMPLETION: [fields: object, param: string, message: RegExp][] = [
  [{ prompt: undefined }, "prompt", /is missing/],
  [{ prompt: "" }, "prompt", /has no tokens/],
  [{ prompt: [] }, "prompt", /empty list/],
  [{ prompt: {} }, "prompt", /expected a string, token ids/],
  [{ prompt: [""] }, "prompt", /has no tokens/],
  [{ prompt: [[]] }, "prompt", /has no tokens/],
  [{ prompt: ["a", ""] }, "prompt[1]", /has no tokens/],
  [{ prompt: ["a", 3] }, "prompt[1]", /got 3/],
  [{ prompt: [3, "a"] }, "prompt[1]", /expected a token id, got "a"/],
  [{ prompt: [-1] }, "prompt[0]", /expected a token id, got -1/],
  [{ prompt: [VOCAB] }, "prompt[0]", BEYOND],
  [{ prompt: [[1], [1, 9999]] }, "prompt[1][1]", /9999 .* vocabulary/],
  [{ prompt: Array(257).fill("a") }, "prompt", /257 prompts, expected at most 256/],
  [{ prompt: Array(257).fill(1) }, "prompt", /257 tokens .* context of 256/],
  [{ prompt: "the sea ".repeat(500) }, "prompt", /tokens .* context of 256/],
  [{ prompt: "x".repeat(60_000) }, "prompt", /60000 bytes .* context of 256/],
  [{ max_tokens: -1 }, "max_tokens", /-1 .* at least 0/],
  [{ logprobs: 21 }, "logprobs", /21 .* at most 20/],
  [{ logprobs: true }, "logprobs", /expected number, got true/],
  [{ echo: 1 }, "echo", /expected boolean/],
  [{ suffix: "end" }, "suffix", /not supported/],
  [{ best_of: 2 }, "best_of", /not supported/],
  [{ n: 2, best_of: 3 }, "best_of", /not supported/],
];

test("a bad field of a completions body names itself with its value and the limit", async () => {
  for (const [fields, param, message] of BAD_COMPLETION) {
    const answer = await doors.post("/v1/completions", completion(fields));
    assertError(answer, 400, param);
    assert.match(answer.body.error.message, message);
  }
});

test("bodies that are no JSON object are refused", async () => {
  const post = (body: Uint8Array, headers?: Record<string, string>) =>
    doors.post("/v1/completions", body, headers);
  assertError(await post(Buffer.from('{"prompt": ')), 400, null, "invalid_json");
  assertError(await post(Buffer.from("")), 400, null);
  assertError(await post(Buffer.from("null")), 400, null);
  assertError(await post(Buffer.from("[1]")), 400, null);
  assertError(
    await post(Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d])),
    400,
    null,
    "invalid_utf8",
  );
  assertError(await post(Buffer.from("[".repeat(60_000))), 400, null);
  assertError(await post(Buffer.from("{}"), { "content-type": "text/plain" }), 415, null);
  assertError(await post(Buffer.alloc(BODY_LIMIT + 1, " ")), 413, null, "body_too_large");
});

test("unknown routes are 404, known ones with another method 405", async () => {
  assertError(await doors.get("/v2/completions"), 404, null, "route_not_found");
  const wrong = await doors.get("/v1/completions");
  assertError(wrong, 405, null, "method_not_allowed");
  assert.equal(wrong.headers.get("allow"), "POST");
  assertError(await doors.post("/v1/models", {}), 405, null);
  assertError(await doors.get("/v1/models/other"), 404, "model", "model_not_found");
  assertError(await doors.get("/%zz"), 400, null);
});

test("a task label outside its alphabet is refused", async () => {
  const headers = { "x-switchyard-task": "Not Good" };
  const answer = await doors.post("/v1/completions", completion({}), headers);
  assertError(answer, 400, "X-Switchyard-Task");
});

test("what is not HTTP gets an answer in the same shape", async () => {
  const { hostname, port } = new URL(doors.url);
  const socket = connect(Number(port), hostname);
  socket.end("\u0001 nonsense\r\n\r\n");
  let text = "";
  for await (const chunk of socket) text += String(chunk);
  assert.match(text, /^HTTP\/1\.1 400 /);
  const body: unknown = JSON.parse(text.slice(text.indexOf("\r\n\r\n") + 4));
  assertError({ status: 400, headers: new Headers(), body }, 400, null);
});

test("with an API key only probes come in without it", async () => {
  const locked = await openDoors({ api: { apiKey: "secret" } });
  try {
    for (const route of ["/health", "/ping", "/version", "/metrics"]) {
      assert.equal((await locked.get(route)).status, 200, route);
    }
    assertError(await locked.get("/v1/models"), 401, null, "invalid_api_key");
    const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
    assertError(await locked.get("/v1/models", bearer("Secret")), 401, null);
    assertError(await locked.get("/v1/models", { authorization: "secret" }), 401, null);
    assertError(await locked.post("/tokenize", { prompt: "x" }), 401, null);
    assert.equal((await locked.get("/v1/models", bearer("secret"))).status, 200);
  } finally {
    await locked.close();
  }
});

/** An engine that only fails. */
function failingEngine(error: Error): Engine {
  return {
    ...doors.engine,
    maxModelLen: 256,
    // It fails before its first event.
    // oxlint-disable-next-line require-yield
    async *submit() {
      throw error;
    },
  };
}

test("each failure of the engine has its status, streamed or not", async () => {
  const failures: [Error, number, string][] = [
    [new QueueFullError(8, 8), 429, "queue_full"],
    [new UnavailableError("layer 2 expert 7 has no living copy"), 503, "unavailable"],
    [new RequestTimeoutError(600), 504, "request_timeout"],
    [new Error("a secret path"), 500, "internal_error"],
  ];
  for (const [error, status, code] of failures) {
    const failing = await openDoors({ api: { engine: failingEngine(error) } });
    try {
      for (const stream of [false, true]) {
        const answer = await failing.post("/v1/completions", completion({ stream }));
        assertError(answer, status, null, code);
        const { message } = answer.body.error;
        assert.equal(message.includes(error.message), status !== 500, message);
      }
      assert.equal(failing.logged.length, status === 500 ? 2 : 0, "only what is ours is logged");
    } finally {
      await failing.close();
    }
  }
});

test("a fault in a step is an internal error to the client and one line in the log", async () => {
  const fault = new TypeError("a secret of the step");
  const beforeStep = () => {
    throw fault;
  };
  const faulty = await openDoors({ toy: { beforeStep } });
  try {
    const answer = await faulty.post("/v1/completions", completion({ n: 3 }));
    assertError(answer, 500, null, "internal_error");
    assert.equal(answer.headers.get("retry-after"), null);
    assert.doesNotMatch(answer.body.error.message, /secret/);
    assert.equal(faulty.logged.length, 1);
    const { err } = faulty.logged[0].facts as { readonly err: Error };
    assert.equal(err.cause, fault);
  } finally {
    await faulty.close();
  }
});

test("while the service is unavailable new requests and /health say 503 with the reason", async () => {
  let reason: string | undefined = "layer 2 expert 7 has no living copy";
  const away = await openDoors({ api: { unavailableReason: () => reason } });
  try {
    for (const answer of [
      await away.get("/health"),
      await away.post("/v1/completions", completion({})),
    ]) {
      assertError(answer, 503, null, "unavailable");
      assert.equal(answer.body.error.message, reason);
    }
    reason = undefined;
    assert.equal((await away.get("/health")).status, 200);
    assert.equal((await away.post("/v1/completions", completion({}))).status, 200);
  } finally {
    await away.close();
  }
});
