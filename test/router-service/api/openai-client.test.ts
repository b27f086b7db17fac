import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import OpenAI from "openai";

import { toyContinuation } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { type Doors, MODEL, openDoors, VOCAB } from "./doors.ts";

let doors: Doors;
let client: OpenAI;

before(async () => {
  doors = await openDoors();
  client = new OpenAI({ baseURL: `${doors.url}/v1`, apiKey: "any", maxRetries: 0 });
});
after(() => doors.close());

const messages = [{ role: "user" as const, content: "Where is the sea?" }];

/** What the toy says after a prompt. */
function toyText(prompt: string, numTokens: number): { ids: number[]; text: string } {
  const ids = toyContinuation(doors.tokenizer.encode(prompt), numTokens, VOCAB);
  return { ids, text: doors.tokenizer.decode(ids, { skipSpecialTokens: true }) };
}

test("a chat completion has the template's prompt, the engine's text and exact usage", async () => {
  const rendered = "<|im_start|>user\nWhere is the sea?<|im_end|>\n<|im_start|>assistant\n";
  const expected = toyText(rendered, 12);
  const answer = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 12 });
  assert.equal(answer.object, "chat.completion");
  assert.match(answer.id, /^chatcmpl-/);
  assert.equal(answer.model, MODEL);
  assert.ok(Math.abs(answer.created - Date.now() / 1000) < 60);
  assert.equal(answer.choices.length, 1);
  assert.deepEqual(answer.choices[0].message, {
    role: "assistant",
    content: expected.text,
    refusal: null,
  });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.choices[0].logprobs, null);
  const promptTokens = doors.tokenizer.encode(rendered).length;
  assert.equal(answer.usage?.prompt_tokens, promptTokens);
  assert.equal(answer.usage?.completion_tokens, 12);
  assert.equal(answer.usage?.total_tokens, promptTokens + 12);
});

test("the same prompt again counts its cached tokens", async () => {
  const prompt = "The quick brown fox jumps over the lazy dog, again and again, until night falls.";
  const ask = () => client.completions.create({ model: MODEL, prompt, max_tokens: 2 });
  const first = await ask();
  const second = await ask();
  assert.equal(first.usage?.prompt_tokens_details?.cached_tokens, 0);
  assert.ok((second.usage?.prompt_tokens_details?.cached_tokens ?? 0) >= 16);
  assert.deepEqual(second.choices, first.choices);
});

test("a streamed chat begins with the role, ends with the reason, and its pieces are the whole text", async () => {
  const whole = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 30 });
  const stream = await client.chat.completions.create({
    model: MODEL,
    messages,
    max_tokens: 30,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
  assert.equal(new Set(chunks.map(({ created }) => created)).size, 1);
  assert.ok(chunks.every(({ object }) => object === "chat.completion.chunk"));
  assert.deepEqual(chunks[0].choices[0].delta, { role: "assistant", content: "" });
  const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  const [last, usage] = chunks.slice(-2);
  assert.equal(last.choices[0].finish_reason, "length");
  assert.deepEqual(last.choices[0].delta, {});
  assert.deepEqual(usage.choices, []);
  assert.equal(usage.usage?.completion_tokens, 30);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
});

test("without include_usage no chunk has a usage", async () => {
  const stream = await client.completions.create({
    model: MODEL,
    prompt: "once",
    max_tokens: 3,
    stream: true,
  });
  for await (const chunk of stream) assert.ok(!("usage" in chunk));
});

test("chat logprobs have token, bytes and the most likely alternatives", async () => {
  const answer = await client.chat.completions.create({
    model: MODEL,
    messages,
    max_tokens: 6,
    logprobs: true,
    top_logprobs: 3,
  });
  const content = answer.choices[0].logprobs?.content ?? [];
  assert.equal(content.length, 6);
  const bytes = content.flatMap((entry) => entry.bytes ?? []);
  assert.equal(Buffer.from(bytes).toString(), answer.choices[0].message.content);
  for (const entry of content) {
    assert.equal(entry.top_logprobs.length, 3);
    // Greedy takes the most likely token.
    assert.equal(entry.logprob, entry.top_logprobs[0].logprob);
    assert.ok(entry.logprob < 0 && entry.logprob > -20);
  }
});

test("a batch of prompts with n completions each comes back in the order of its index", async () => {
  const prompts = ["one two", "red green blue"];
  const answer = await client.completions.create({
    model: MODEL,
    prompt: prompts,
    n: 2,
    max_tokens: 5,
  });
  assert.deepEqual(
    answer.choices.map(({ index, text }) => ({ index, text })),
    prompts.flatMap((prompt, p) => {
      const { text } = toyText(prompt, 5);
      return [
        { index: 2 * p, text },
        { index: 2 * p + 1, text },
      ];
    }),
  );
  const encoded = prompts.map((prompt) => doors.tokenizer.encode(prompt).length);
  assert.equal(answer.usage?.prompt_tokens, encoded[0] + encoded[1], "a prompt counts once");
  assert.equal(answer.usage?.completion_tokens, 20);
});

test("a streamed batch interleaves its choices, each with the text of its own prompt", async () => {
  const prompts = ["alpha", "beta", "gamma"];
  const stream = await client.completions.create({
    model: MODEL,
    prompt: prompts,
    max_tokens: 10,
    stream: true,
  });
  const texts = ["", "", ""];
  const reasons: string[] = ["", "", ""];
  for await (const { choices } of stream) {
    texts[choices[0].index] += choices[0].text;
    reasons[choices[0].index] = choices[0].finish_reason;
  }
  assert.deepEqual(
    texts,
    prompts.map((prompt) => toyText(prompt, 10).text),
  );
  assert.deepEqual(reasons, ["length", "length", "length"]);
});

test("the same seed gives the same text, and the completions of one request differ", async () => {
  const ask = (seed: number, n: number) =>
    client.completions.create({
      model: MODEL,
      prompt: "dice",
      max_tokens: 8,
      temperature: 1,
      seed,
      n,
    });
  const texts = async (seed: number, n: number) =>
    (await ask(seed, n)).choices.map(({ text }) => text);
  const three = await texts(7, 3);
  assert.equal(new Set(three).size, 3);
  assert.deepEqual(await texts(7, 3), three);
  assert.deepEqual(await texts(8, 1), [three[1]], "the second completion has the next seed");
});

test("a stop string ends the text before it", async () => {
  const { text } = toyText("needle", 20);
  const stop = text.slice(10, 13);
  const answer = await client.completions.create({
    model: MODEL,
    prompt: "needle",
    max_tokens: 20,
    stop,
  });
  assert.equal(answer.choices[0].text, text.slice(0, text.indexOf(stop)));
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(!text.slice(0, text.indexOf(stop)).includes(stop));
});

test("a token-id prompt is the same as its text", async () => {
  const ids = doors.tokenizer.encode("numbers");
  const [byText, byIds, batch] = await Promise.all([
    client.completions.create({ model: MODEL, prompt: "numbers", max_tokens: 6 }),
    client.completions.create({ model: MODEL, prompt: ids, max_tokens: 6 }),
    client.completions.create({ model: MODEL, prompt: [ids, ids], max_tokens: 6 }),
  ]);
  assert.equal(byIds.choices[0].text, byText.choices[0].text);
  assert.deepEqual(
    batch.choices.map(({ text }) => text),
    [byText.choices[0].text, byText.choices[0].text],
  );
});

test("max_tokens defaults to 16 for completions and to what the context leaves for chat", async () => {
  const completion = await client.completions.create({ model: MODEL, prompt: "default" });
  assert.equal(completion.usage?.completion_tokens, 16);
  const chat = await client.chat.completions.create({ model: MODEL, messages });
  assert.equal(chat.usage?.total_tokens, doors.engine.maxModelLen);
});

test("the client's own error classes carry param and code", async () => {
  const failure = async (call: Promise<unknown>) => {
    const error = await call.then(
      () => assert.fail("the call succeeds"),
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof OpenAI.APIError);
    return error;
  };
  const hot = await failure(
    client.chat.completions.create({ model: MODEL, messages, temperature: 3 }),
  );
  assert.ok(hot instanceof OpenAI.BadRequestError);
  assert.equal(hot.param, "temperature");
  assert.match(hot.message, /temperature: 3 .* at most 2/);
  const missing = await failure(client.chat.completions.create({ model: "gpt-9", messages }));
  assert.ok(missing instanceof OpenAI.NotFoundError);
  assert.equal(missing.code, "model_not_found");
  const tools = await failure(
    client.chat.completions.create({
      model: MODEL,
      messages,
      tools: [{ type: "function", function: { name: "look" } }],
    }),
  );
  assert.ok(tools instanceof OpenAI.BadRequestError);
  assert.equal(tools.param, "tools");
});

test("models are listed and retrieved", async () => {
  const page = await client.models.list();
  assert.deepEqual(
    page.data.map(({ id, object }) => [id, object]),
    [[MODEL, "model"]],
  );
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
  const slashed = await openDoors({ api: { servedModelName: "org/demo" } });
  try {
    const { models } = new OpenAI({ baseURL: `${slashed.url}/v1`, apiKey: "any", maxRetries: 0 });
    assert.equal((await models.retrieve("org/demo")).id, "org/demo");
  } finally {
    await slashed.close();
  }
});

test("a client that leaves a stream ends its sequence in the engine", async () => {
  const stream = await client.completions.create({
    model: MODEL,
    prompt: "leaving",
    max_tokens: 200,
    stream: true,
  });
  for await (const chunk of stream) {
    assert.ok(chunk);
    break;
  }
  await waitFor("no running sequence", () => doors.engine.state().running === 0, 2000);
});
