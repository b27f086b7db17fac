import assert from "node:assert/strict";
import { once } from "node:events";
import { request, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { after, before, describe, test } from "node:test";

import fc from "fast-check";

import { continueGreedily } from "../../bench/rig/api.ts";
import { DEMO_MODEL, isHealthy, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { readModelConfig } from "../../core/model/load-config.ts";
import { readDemoGoldens } from "../support/goldens.ts";

const [facts] = await readDemoGoldens(["facts"]);
const { vocabSize } = await readModelConfig(DEMO_MODEL);

/** What a request body may hold, good and bad, for the fields that the API knows. */
const anyField = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.double(),
  fc.integer(),
  fc.constantFrom(
    null,
    true,
    [],
    {},
    -1,
    0,
    1e308,
    "",
    "\u0000",
    "\ud800",
    [[]],
    [-1],
    [1e9],
    [0.5],
  ),
);

const fields = [
  "prompt",
  "messages",
  "model",
  "max_tokens",
  "max_completion_tokens",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "n",
  "stop",
  "seed",
  "logprobs",
  "top_logprobs",
  "logit_bias",
  "stop_token_ids",
  "stream_options",
  "repetition_penalty",
  "presence_penalty",
  "ignore_eos",
  "min_tokens",
  "echo",
  "tools",
  "response_format",
];

const mutation = fc.dictionary(fc.constantFrom(...fields), anyField, { minKeys: 1, maxKeys: 3 });

describe("malformed input to a live cluster", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2, model: DEMO_MODEL, device: "cpu" });
  });
  after(() => cluster?.close());

  async function post(
    path: string,
    body: string | Uint8Array<ArrayBuffer>,
  ): Promise<{ status: number; text: string }> {
    const response = await fetch(cluster.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
      signal: AbortSignal.timeout(30_000),
    });
    return { status: response.status, text: await response.text() };
  }

  /** Fails unless the answer is an error in OpenAI's shape with all four keys. */
  function assertError(answer: { status: number; text: string }, statuses: number[]): void {
    const message = `${answer.status} ${answer.text.slice(0, 500)}`;
    assert.ok(statuses.includes(answer.status), message);
    const { error } = JSON.parse(answer.text) as { error: Record<string, unknown> };
    assert.deepEqual(Object.keys(error).toSorted(), ["code", "message", "param", "type"], message);
    assert.ok(typeof error.message === "string" && error.message.length > 0, message);
  }

  async function assertStillWorks(): Promise<void> {
    assert.ok(await isHealthy(cluster.url));
    const { ids } = await continueGreedily(cluster.url, facts.token_ids, 4);
    assert.deepEqual(ids, facts.greedy.ids.slice(0, 4));
  }

  const good = { prompt: "The Battle of", max_tokens: 1, temperature: 0 };
  const cases: readonly (readonly [
    name: string,
    path: string,
    body: string | Uint8Array<ArrayBuffer>,
    status: number,
  ])[] = [
    ["an empty body", "/v1/completions", "", 400],
    ["half a body", "/v1/completions", '{"prompt": "a', 400],
    ["a list for an object", "/v1/completions", "[]", 400],
    ["a number for an object", "/v1/chat/completions", "7", 400],
    ["invalid UTF-8", "/v1/completions", new Uint8Array([0x22, 0xff, 0xfe, 0x22]), 400],
    [
      "invalid UTF-8 within a string",
      "/v1/completions",
      Buffer.concat([
        Buffer.from('{"max_tokens":1,"prompt":"'),
        Buffer.from([0xc3, 0x28, 0xed, 0xa0, 0x80]),
        Buffer.from('"}'),
      ]),
      400,
    ],
    ["no prompt", "/v1/completions", "{}", 400],
    ["no messages", "/v1/chat/completions", '{"messages":[]}', 400],
    ["an id beyond the vocabulary", "/v1/completions", `{"prompt":[${vocabSize}]}`, 400],
    ["a negative id", "/v1/completions", '{"prompt":[-1]}', 400],
    ["half an id", "/v1/completions", '{"prompt":[0.5]}', 400],
    ["an empty prompt", "/v1/completions", '{"prompt":[]}', 400],
    [
      "a prompt beyond the context",
      "/v1/completions",
      JSON.stringify({ ...good, prompt: Array.from({ length: 2048 }, () => 5) }),
      400,
    ],
    [
      "a huge text",
      "/v1/completions",
      JSON.stringify({ ...good, prompt: "a b ".repeat(2e5) }),
      400,
    ],
    ["deep nesting", "/v1/completions", `${"[".repeat(1e5)}${"]".repeat(1e5)}`, 400],
    ["an unknown model", "/v1/completions", JSON.stringify({ ...good, model: "gpt-4" }), 404],
    ["an unknown route", "/v1/embeddings", "{}", 404],
  ];
  for (const [name, path, body, status] of cases)
    test(`${name} is answered ${status}, and the next request works`, async () => {
      assertError(await post(path, body), [status]);
      await assertStillWorks();
    });

  test("a body that says it is beyond the limit is answered 413 before it is sent", async () => {
    const headers = { "content-type": "application/json", "content-length": 64 * 1024 * 1024 };
    const outgoing = request(`${cluster.url}/v1/completions`, { method: "POST", headers });
    outgoing.on("error", () => undefined);
    outgoing.flushHeaders();
    const [incoming] = (await once(outgoing, "response", {
      signal: AbortSignal.timeout(10_000),
    })) as [IncomingMessage];
    const text = Buffer.concat(await incoming.toArray()).toString();
    outgoing.destroy();
    assertError({ status: incoming.statusCode ?? 0, text }, [413]);
    await assertStillWorks();
  });

  test("any mixture of fields is answered, by a completion or by an error that says why", async () => {
    const statuses = new Set<number>();
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom("/v1/completions", "/v1/chat/completions"),
        mutation,
        async (path, changes) => {
          const base = path.includes("chat")
            ? { messages: [{ role: "user", content: "Hi" }], max_tokens: 1 }
            : good;
          // A large n or a long answer is not malformed, only slow.
          const body = JSON.stringify({ ...base, ...changes });
          const answer = await post(path, body);
          statuses.add(answer.status);
          if (answer.status === 200) JSON.parse(answer.text);
          else assertError(answer, [400, 404]);
        },
      ),
      { numRuns: 150, seed: 20_261, endOnFailure: true },
    );
    assert.ok(statuses.has(200) && statuses.has(400), "both kinds of answers came");
    await assertStillWorks();
  });

  test("bytes that are no HTTP, or no gRPC, close their connection and nothing else", async () => {
    const ports = [new URL(cluster.url).port, cluster.grpcAddress.split(":")[1]];
    for (const port of [...ports, `${cluster.shards[0].ready.port}`]) {
      const socket = connect(Number(port), "127.0.0.1");
      socket.on("error", () => undefined);
      const closed = new Promise((resolve) => {
        socket.once("close", resolve);
      });
      socket.resume();
      socket.end(Buffer.from("\u0000\u0001garbage\r\n\r\n".repeat(50)));
      await closed;
    }
    await assertStillWorks();
  });
});
