import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { toyContinuation, toyLogitsOf, logSumExp } from "../../support/toy-runner.ts";
import { type Doors, openDoors, VOCAB } from "./doors.ts";

const PROMPT = "Über den Wolken 🌊 muß die Freiheit";

let doors: Doors;

before(async () => {
  doors = await openDoors();
});
after(() => doors.close());

/** The oracle's log-probability of each token but the first. */
function oracle(ids: readonly number[]): (number | null)[] {
  return ids.map((id, i) => {
    if (i === 0) return null;
    const logits = toyLogitsOf(ids.slice(0, i), VOCAB);
    return logits[id] - logSumExp(logits);
  });
}

function assertClose(actual: readonly (number | null)[], expected: readonly (number | null)[]) {
  assert.equal(actual.length, expected.length);
  actual.forEach((value, i) => {
    const wanted = expected[i];
    if (value === null || wanted === null) assert.equal(value, wanted, `position ${i}`);
    else assert.ok(Math.abs(value - wanted) < 1e-4, `position ${i}: ${value}, expected ${wanted}`);
  });
}

const post = (fields: object) => doors.post("/v1/completions", fields);

test("token ids with echo, logprobs 1 and max_tokens 1, as lm-eval sends them, give every prompt token its log-probability", async () => {
  const ids = doors.tokenizer.encode(PROMPT);
  const { body } = await post({
    prompt: [ids],
    echo: true,
    logprobs: 1,
    max_tokens: 1,
    temperature: 0,
    seed: 1234,
  });
  const [choice] = body.choices;
  const { tokens, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
  const all = [...ids, ...toyContinuation(ids, 1, VOCAB)];
  assertClose(token_logprobs, oracle(all));
  assert.equal(top_logprobs[0], null);
  assert.equal(tokens.length, all.length);
  assert.equal(text_offset.length, all.length);
  for (let i = 1; i < all.length; i++) {
    assert.equal(top_logprobs[i][tokens[i]], token_logprobs[i], "the token itself is among them");
    const best = Math.max(...Object.values<number>(top_logprobs[i]));
    const logits = toyLogitsOf(all.slice(0, i), VOCAB);
    assertClose([best], [Math.max(...logits) - logSumExp(logits)]);
  }
  assert.equal(choice.text, doors.tokenizer.decode(all));
  assert.equal(body.usage.prompt_tokens, ids.length);
  assert.equal(body.usage.completion_tokens, 1);
  assert.equal(body.usage.prompt_tokens_details.cached_tokens, 0);
});

test("prompt log-probabilities are the same when the prompt is in the prefix cache", async () => {
  const ask = { prompt: PROMPT.repeat(3), echo: true, logprobs: 2, max_tokens: 0 };
  await post({ ...ask, echo: false, logprobs: null, max_tokens: 1 });
  const { body } = await post(ask);
  const { token_logprobs, tokens } = body.choices[0].logprobs;
  assertClose(token_logprobs, oracle(doors.tokenizer.encode(ask.prompt)));
  assert.equal(tokens.length, body.usage.prompt_tokens);
  assert.equal(body.choices[0].text, ask.prompt);
  assert.equal(body.choices[0].finish_reason, "length");
  assert.equal(body.usage.completion_tokens, 0);
});

test("a prompt that fills the context can be scored without a new token", async () => {
  const prompt = Array.from({ length: doors.engine.maxModelLen }, (_, i) => i);
  const { status, body } = await post({ prompt, echo: true, logprobs: 0, max_tokens: 0 });
  assert.equal(status, 200);
  assert.equal(body.choices[0].logprobs.tokens.length, prompt.length);
  assert.equal((await post({ prompt, max_tokens: 1 })).body.error.param, "prompt");
});

test("text offsets count code points, and tokens that split a character show their bytes", async () => {
  const { body } = await post({ prompt: PROMPT, echo: true, logprobs: 0, max_tokens: 0 });
  const { tokens, text_offset } = body.choices[0].logprobs;
  const text = Array.from(PROMPT);
  assert.ok(tokens.some((token: string) => token.startsWith("bytes:\\xf0")));
  for (const [i, token] of (tokens as string[]).entries()) {
    if (token.startsWith("bytes:")) continue;
    const at = text_offset[i];
    assert.equal(text.slice(at, at + Array.from(token).length).join(""), token);
  }
});

test("streamed chunks carry the same log-probabilities, offsets and token ids as the whole answer", async () => {
  const ask = { prompt: PROMPT, echo: true, logprobs: 2, max_tokens: 9, return_token_ids: true };
  const { body: whole } = await post(ask);
  const { body: events } = await post({ ...ask, stream: true });
  const chunks = parseEvents(events).map((chunk) => chunk.choices[0]);
  const parts = chunks.flatMap((choice) => (choice.logprobs === null ? [] : [choice.logprobs]));
  for (const key of ["tokens", "token_logprobs", "top_logprobs", "text_offset"]) {
    const joined = parts.flatMap((part) => part[key]);
    assert.deepEqual(joined, whole.choices[0].logprobs[key], key);
  }
  assert.equal(chunks.map(({ text }) => text).join(""), whole.choices[0].text);
  assert.deepEqual(
    chunks.flatMap(({ token_ids }) => token_ids ?? []),
    whole.choices[0].token_ids,
  );
  const ids = doors.tokenizer.encode(PROMPT);
  assert.deepEqual(chunks[0].prompt_token_ids, ids);
  assert.deepEqual(whole.choices[0].prompt_token_ids, ids);
  assert.deepEqual(whole.choices[0].token_ids, toyContinuation(ids, 9, VOCAB));
});

test("prompt_logprobs have vLLM's shape", async () => {
  const { body } = await post({ prompt: PROMPT, prompt_logprobs: 2, max_tokens: 1 });
  const ids = doors.tokenizer.encode(PROMPT);
  const positions = body.choices[0].prompt_logprobs;
  assert.equal(positions[0], null);
  const own = ids.map((id, i) => (i === 0 ? null : positions[i][id].logprob));
  assertClose(own, oracle(ids));
  for (const position of positions.slice(1)) {
    const ranks = Object.values(position as Record<string, { rank: number | null }>);
    assert.ok(ranks.some(({ rank }) => rank === 1) && ranks.some(({ rank }) => rank === 2));
  }
});

test("an end-of-sequence id is counted and among the token ids, not in the text", async () => {
  const ids = doors.tokenizer.encode("the end");
  const [first, second] = toyContinuation(ids, 2, VOCAB);
  const { body } = await post({
    prompt: ids,
    max_tokens: 8,
    stop_token_ids: [second],
    return_token_ids: true,
  });
  const [choice] = body.choices;
  assert.equal(choice.finish_reason, "stop");
  assert.equal(choice.stop_reason, second);
  assert.deepEqual(choice.token_ids, [first, second]);
  assert.equal(choice.text, doors.tokenizer.decode([first]));
  assert.equal(body.usage.completion_tokens, 2);
});

test("an end-of-sequence id has its log-probability like any token, so that entries and counted tokens agree", async () => {
  const eos = 2;
  const ending = await openDoors({ engine: { eosTokenIds: [eos] } });
  try {
    const ids = ending.tokenizer.encode(PROMPT);
    const common = { max_tokens: 1, logit_bias: { [eos]: 100 } };
    const ask = { ...common, prompt: [ids], echo: true, logprobs: 1 };
    const { body } = await ending.post("/v1/completions", ask);
    const [choice] = body.choices;
    assert.deepEqual([choice.finish_reason, choice.text], ["stop", PROMPT]);
    assert.equal(body.usage.completion_tokens, 1);
    // What lm-eval reads of a prompt without a continuation's last token: [ctxlen:-1].
    assertClose(choice.logprobs.token_logprobs.slice(1, -1), oracle(ids).slice(1));
    assertClose(choice.logprobs.token_logprobs, oracle([...ids, eos]));
    for (const key of ["tokens", "top_logprobs", "text_offset"]) {
      assert.equal(choice.logprobs[key].length, ids.length + 1, key);
    }
    assert.equal(choice.logprobs.text_offset.at(-1), Array.from(PROMPT).length);
    const streamed = await ending.post("/v1/completions", { ...ask, stream: true });
    const parts = parseEvents(streamed.body).flatMap(({ choices }) => choices[0].logprobs ?? []);
    assertClose(
      parts.flatMap((part) => part.token_logprobs),
      choice.logprobs.token_logprobs,
    );

    const messages = [{ role: "user", content: "hi" }];
    const talk = { ...common, messages, logprobs: true, top_logprobs: 2 };
    const chat = await ending.post("/v1/chat/completions", talk);
    const { content } = chat.body.choices[0].logprobs;
    assert.deepEqual([content.length, content[0].top_logprobs.length], [1, 2]);
    const chunks = await ending.post("/v1/chat/completions", { ...talk, stream: true });
    assert.deepEqual(parseEvents(chunks.body).at(-1).choices[0].logprobs.content, content);
  } finally {
    await ending.close();
  }
});

test("tokenize and detokenize are each other's inverse, and tokenize renders conversations", async () => {
  const { body } = await doors.post("/tokenize", { prompt: PROMPT, return_token_strs: true });
  assert.deepEqual(body.tokens, doors.tokenizer.encode(PROMPT));
  assert.equal(body.count, body.tokens.length);
  assert.equal(body.max_model_len, doors.engine.maxModelLen);
  assert.equal(body.token_strs.length, body.count);
  const back = await doors.post("/detokenize", { tokens: body.tokens });
  assert.deepEqual(back.body, { prompt: PROMPT });
  const chat = await doors.post("/tokenize", { messages: [{ role: "user", content: "hi" }] });
  const text = (await doors.post("/detokenize", { tokens: chat.body.tokens })).body.prompt;
  assert.equal(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
});

test("without a tokenizer token ids are served, and text is refused by name", async () => {
  const bare = await openDoors({ tokenizer: "none" });
  try {
    const ask = { prompt: [5, 6, 7], max_tokens: 4, return_token_ids: true, logprobs: 1 };
    const { body } = await bare.post("/v1/completions", ask);
    assert.equal(body.choices[0].text, "");
    assert.deepEqual(body.choices[0].token_ids, toyContinuation([5, 6, 7], 4, VOCAB));
    assert.match(body.choices[0].logprobs.tokens[0], /^token_id:\d+$/);
    const streamed = await bare.post("/v1/completions", { ...ask, stream: true });
    const ids = parseEvents(streamed.body).flatMap((chunk) => chunk.choices[0].token_ids ?? []);
    assert.deepEqual(ids, body.choices[0].token_ids);
    const refused: [string, object, string][] = [
      ["/v1/completions", { prompt: "text" }, "prompt"],
      ["/v1/completions", { prompt: [5], stop: "x" }, "stop"],
      ["/v1/chat/completions", { messages: [{ role: "user", content: "x" }] }, "messages"],
      ["/tokenize", { prompt: "text" }, "prompt"],
      ["/detokenize", { tokens: [5] }, "tokens"],
    ];
    for (const [route, fields, param] of refused) {
      const answer = await bare.post(route, fields);
      assert.equal(answer.status, 400);
      assert.equal(answer.body.error.param, param);
      assert.match(answer.body.error.message, /tokenizer/);
    }
  } finally {
    await bare.close();
  }
});

// What an event looks like is what the tests are about.
// oxlint-disable-next-line typescript/no-explicit-any
function parseEvents(text: string): any[] {
  const events = text.trimEnd().split("\n\n");
  assert.equal(events.pop(), "data: [DONE]");
  return events.map((event) => JSON.parse(event.slice("data: ".length)) as unknown);
}
