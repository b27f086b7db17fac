import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import OpenAI from "openai";

import { DEMO_MODEL, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { readDemoGoldens } from "../support/goldens.ts";

const [facts] = await readDemoGoldens(["facts"]);
const question = { role: "user" as const, content: "Tell me about Norway." };

describe("the official openai client", () => {
  let cluster: Cluster;
  let client: OpenAI;
  before(async () => {
    const routerFlags = ["--api-key", "secret", "--served-model-name", "demo"];
    cluster = await startCluster({ shards: 2, model: DEMO_MODEL, device: "cpu", routerFlags });
    client = new OpenAI({ baseURL: `${cluster.url}/v1`, apiKey: "secret", maxRetries: 0 });
  });
  after(() => cluster?.close());

  test("lists the model under its served name", async () => {
    const models = await Array.fromAsync(client.models.list());
    assert.deepEqual(
      models.map(({ id, object }) => ({ id, object })),
      [{ id: "demo", object: "model" }],
    );
    assert.equal((await client.models.retrieve("demo")).id, "demo");
  });

  test("chats, the same with the same seed", async () => {
    const ask = () =>
      client.chat.completions.create({
        model: "demo",
        messages: [question],
        max_completion_tokens: 16,
        seed: 7,
      });
    const answer = await ask();
    const [choice] = answer.choices;
    assert.equal(choice.message.role, "assistant");
    assert.ok(choice.message.content);
    assert.ok(["length", "stop"].includes(choice.finish_reason));
    const { usage } = answer;
    assert.ok(usage);
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert.equal((await ask()).choices[0].message.content, choice.message.content);
  });

  test("streams a chat: role first, then text, one usage chunk last, the text as unstreamed", async () => {
    const request = {
      model: "demo",
      messages: [question],
      max_completion_tokens: 16,
      temperature: 0,
    };
    const whole = await client.chat.completions.create(request);
    const stream = await client.chat.completions.create({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = await Array.fromAsync(stream);
    assert.equal(chunks[0].choices[0].delta.role, "assistant");
    assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
    const last = chunks.at(-1);
    assert.deepEqual(last?.choices, []);
    assert.equal(last?.usage?.completion_tokens, whole.usage?.completion_tokens);
    const finished = chunks.filter((chunk) => chunk.choices[0]?.finish_reason);
    assert.equal(finished.length, 1);
  });

  test("completes text greedily as the golden does, with echo, usage and n", async () => {
    const prompt = "Apollo program\n\nThe Apollo program, also known as";
    const answer = await client.completions.create({
      model: "demo",
      prompt,
      max_tokens: 8,
      temperature: 0,
      echo: true,
      n: 2,
    });
    assert.equal(answer.choices.length, 2);
    assert.ok(answer.choices[0].text.startsWith(prompt));
    assert.equal(answer.choices[0].text, answer.choices[1].text, "greedy choices are alike");
    const golden = await client.completions.create({
      model: "demo",
      prompt: [...facts.token_ids],
      max_tokens: facts.greedy.ids.length,
      temperature: 0,
    });
    assert.equal(golden.choices[0].text, facts.greedy.text);
    assert.equal(golden.choices[0].finish_reason, "length");
    assert.equal(golden.usage?.prompt_tokens, facts.token_ids.length);
    assert.equal(golden.usage?.completion_tokens, facts.greedy.ids.length);
  });

  test("gets log-probabilities of chat and completion tokens", async () => {
    const chat = await client.chat.completions.create({
      model: "demo",
      messages: [question],
      max_completion_tokens: 4,
      temperature: 0,
      logprobs: true,
      top_logprobs: 5,
    });
    const content = chat.choices[0].logprobs?.content ?? [];
    assert.equal(content.length, 4);
    for (const { token, bytes, logprob, top_logprobs: top } of content) {
      assert.equal(top.length, 5);
      assert.equal(top[0].token, token, "greedy takes the most likely");
      assert.equal(Buffer.from(bytes ?? []).toString(), token);
      assert.ok(logprob <= 0 && logprob === top[0].logprob);
    }
    assert.equal(content.map(({ token }) => token).join(""), chat.choices[0].message.content);

    const { choices } = await client.completions.create({
      model: "demo",
      prompt: "The Battle of",
      max_tokens: 1,
      echo: true,
      logprobs: 3,
      temperature: 0,
    });
    const logprobs = choices[0].logprobs;
    assert.equal(logprobs?.token_logprobs?.[0], null);
    assert.equal(logprobs?.tokens?.join(""), choices[0].text);
    assert.ok((logprobs?.token_logprobs?.[1] ?? 1) < 0);
    assert.deepEqual(
      logprobs?.text_offset,
      logprobs?.tokens?.map((_, i) => logprobs.tokens?.slice(0, i).join("").length),
    );
  });

  test("ends at a stop string, which is not part of the text", async () => {
    const ask = (stop?: string[]) =>
      client.completions.create({
        model: "demo",
        prompt: [...facts.token_ids],
        max_tokens: 40,
        temperature: 0,
        stop,
      });
    const { text } = facts.greedy;
    // Begins within the text and, being longer than any word, ends in another token.
    const stop = text.slice(20, 40);
    const { choices } = await ask([stop]);
    const [before] = text.split(stop);
    assert.ok(before.length > 0);
    assert.equal(choices[0].text, before);
    assert.equal(choices[0].finish_reason, "stop");
  });

  test("gets OpenAI's own errors", async () => {
    const chat = (changes: object) =>
      client.chat.completions.create({ model: "demo", messages: [question], ...changes });
    await assert.rejects(chat({ model: "gpt-4" }), OpenAI.NotFoundError);
    await assert.rejects(chat({ temperature: -1 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      assert.equal(error.type, "invalid_request_error");
      return true;
    });
    const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
    await assert.rejects(chat({ tools }), OpenAI.BadRequestError);
    await assert.rejects(chat({ max_completion_tokens: 100_000 }), OpenAI.BadRequestError);
    const stranger = new OpenAI({ baseURL: `${cluster.url}/v1`, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(Array.fromAsync(stranger.models.list()), OpenAI.AuthenticationError);
  });
});
