import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import {
  type Client,
  credentials,
  Metadata,
  type ServiceError,
  status as grpcStatus,
} from "@grpc/grpc-js";

import {
  FinishReason,
  type GenerateChunk,
  GenerateRequest,
  type GenerateResponse,
  InferenceServiceClient,
  SamplingParams,
} from "../../../proto/gen/switchyard/v1/inference.ts";
import { toyContinuation, toyLogitsOf, logSumExp } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { CONFIG, type DoorOptions, type Doors, MODEL, openDoors, VOCAB } from "./doors.ts";

let doors: Doors;
let client: InferenceServiceClient;

before(async () => {
  doors = await openDoors();
  client = clientOf(doors);
});
after(async () => {
  client.close();
  await doors.close();
});

function clientOf({ grpcAddress }: Doors): InferenceServiceClient {
  return new InferenceServiceClient(grpcAddress, credentials.createInsecure());
}

/** A request with the parts that are given; the rest is empty. */
function ask(
  prompt: GenerateRequest["prompt"],
  sampling: Partial<SamplingParams> = {},
  rest: Partial<GenerateRequest> = {},
): GenerateRequest {
  const empty = SamplingParams.decode(new Uint8Array());
  return { prompt, sampling: { ...empty, ...sampling }, task: "", requestId: "", ...rest };
}

const text = (value: string): GenerateRequest["prompt"] => ({ $case: "text", value });
const ids = (...value: number[]): GenerateRequest["prompt"] => ({
  $case: "tokenIds",
  value: { ids: value },
});

function generate(
  request: GenerateRequest,
  via: InferenceServiceClient = client,
  metadata = new Metadata(),
): Promise<GenerateResponse> {
  return new Promise((resolve, reject) => {
    via.generate(request, metadata, (error, response) => {
      if (error) reject(error);
      else resolve(response);
    });
  });
}

async function stream(request: GenerateRequest, via = client): Promise<GenerateChunk[]> {
  const chunks: GenerateChunk[] = [];
  for await (const chunk of via.generateStream(request)) chunks.push(chunk as GenerateChunk);
  return chunks;
}

async function failure(call: Promise<unknown>): Promise<ServiceError> {
  return call.then(
    () => assert.fail("the call succeeds"),
    (error: ServiceError) => error,
  );
}

async function withDoors(
  options: DoorOptions,
  body: (via: InferenceServiceClient, opened: Doors) => Promise<void>,
): Promise<void> {
  const opened = await openDoors(options);
  const via = clientOf(opened);
  try {
    await body(via, opened);
  } finally {
    via.close();
    await opened.close();
  }
}

test("Generate returns text, token ids, reason and usage", async () => {
  const prompt = doors.tokenizer.encode("The sea");
  const expected = toyContinuation(prompt, 10, VOCAB);
  const response = await generate(ask(text("The sea"), { maxTokens: 10 }, { requestId: "mine" }));
  assert.equal(response.requestId, "mine");
  assert.deepEqual(response.tokenIds, expected);
  assert.equal(response.text, doors.tokenizer.decode(expected, { skipSpecialTokens: true }));
  assert.equal(response.finishReason, FinishReason.FINISH_REASON_LENGTH);
  assert.deepEqual(response.usage, {
    promptTokens: prompt.length,
    completionTokens: 10,
    cachedTokens: 0,
  });
});

test("a conversation is rendered by the chat template", async () => {
  const messages = [{ role: "user", content: "hi" }];
  const rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
  const byChat = await generate(ask({ $case: "chat", value: { messages } }, { maxTokens: 5 }));
  const byText = await generate(ask(text(rendered), { maxTokens: 5 }));
  assert.deepEqual(byChat.tokenIds, byText.tokenIds);
});

test("GenerateStream sends the same tokens as they come, the last chunk with reason and usage", async () => {
  const request = ask(ids(1, 2, 3), { maxTokens: 12, logprobs: 1, promptLogprobs: 1 });
  const whole = await generate(request);
  const chunks = await stream(request);
  assert.ok(chunks.length > 10);
  assert.deepEqual(
    chunks.flatMap((chunk) => chunk.tokenIds),
    whole.tokenIds,
  );
  assert.equal(chunks.map((chunk) => chunk.text).join(""), whole.text);
  assert.deepEqual(
    chunks.flatMap((chunk) => chunk.logprobs),
    whole.logprobs,
  );
  assert.deepEqual(chunks[0].promptLogprobs, whole.promptLogprobs);
  const last = chunks.at(-1);
  assert.equal(last?.finishReason, FinishReason.FINISH_REASON_LENGTH);
  assert.equal(last.usage?.completionTokens, 12);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === undefined));
  assert.equal(new Set(chunks.map((chunk) => chunk.requestId)).size, 1);
});

test("log-probabilities of prompt and completion are the model's", async () => {
  const prompt = [9, 8, 7, 6];
  const request = ask(ids(...prompt), { maxTokens: 3, logprobs: 2, promptLogprobs: 2 });
  const { tokenIds, logprobs, promptLogprobs } = await generate(request);
  assert.equal(promptLogprobs[0].undefined, true);
  const all = [...prompt, ...tokenIds];
  const positions = [...promptLogprobs, ...logprobs];
  for (let i = 1; i < all.length; i++) {
    const logits = toyLogitsOf(all.slice(0, i), VOCAB);
    assert.equal(positions[i].token?.tokenId, all[i]);
    const expected = logits[all[i]] - logSumExp(logits);
    assert.ok(Math.abs((positions[i].token?.logprob ?? 0) - expected) < 1e-4);
    assert.equal(positions[i].top.length, 2);
  }
});

test("Tokenize and GetModelInfo describe the model", async () => {
  const tokenized = await new Promise((resolve, reject) => {
    client.tokenize({ text: "The sea", addSpecialTokens: true }, (error, response) => {
      if (error) reject(error);
      else resolve(response.tokenIds);
    });
  });
  assert.deepEqual(tokenized, doors.tokenizer.encode("The sea"));
  const info = await new Promise((resolve, reject) => {
    client.getModelInfo({}, (error, response) => {
      if (error) reject(error);
      else resolve(response);
    });
  });
  assert.deepEqual(info, {
    model: MODEL,
    modelType: "qwen2_moe",
    maxModelLen: doors.engine.maxModelLen,
    vocabSize: VOCAB,
    numLayers: CONFIG.numLayers,
    numExperts: CONFIG.numExperts,
    numExpertsPerToken: CONFIG.numExpertsPerToken,
    numShards: 0,
    hasTokenizer: true,
  });
});

test("a bad field is INVALID_ARGUMENT and names itself, unary and streamed", async () => {
  const bad: [GenerateRequest, RegExp][] = [
    [ask(undefined), /^prompt: is missing/],
    [ask(text("")), /^text: has no tokens/],
    [ask(ids()), /^token_ids: has no tokens/],
    [
      ask(ids(1, VOCAB)),
      new RegExp(`^token_ids\\[1\\]: token id ${VOCAB} .* vocabulary of ${VOCAB}`, "u"),
    ],
    [ask({ $case: "chat", value: { messages: [] } }), /^chat\.messages: 0 entries/],
    [
      ask({ $case: "chat", value: { messages: [{ role: "x", content: "" }] } }),
      /^chat\.messages\[0\]\.role: expected .* got "x"/,
    ],
    [ask(ids(1), { temperature: 3 }), /^sampling\.temperature: 3 .* at most 2/],
    [ask(ids(1), { temperature: Number.NaN }), /^sampling\.temperature: expected number, got NaN/],
    [ask(ids(1), { topP: 0 }), /^sampling\.top_p: 0 .* more than 0/],
    [ask(ids(1), { maxTokens: 0 }), /^sampling\.max_tokens: 0 .* at least 1/],
    [ask(ids(1), { maxTokens: 256 }), /257 were requested \(1 in token_ids, 256 to generate\)/],
    [ask(ids(1), { maxTokens: 2, minTokens: 3 }), /^sampling\.min_tokens: 3 is more than the 2/],
    [ask(ids(1), { logprobs: 21 }), /^sampling\.logprobs: 21 .* at most 20/],
    [ask(ids(1), { logitBias: { [VOCAB]: 1 } }), /^sampling\.logit_bias\.\d+: .* vocabulary/],
    [ask(ids(1), { stopTokenIds: [VOCAB] }), /^sampling\.stop_token_ids\[0\]: .* vocabulary/],
    [ask(ids(1), { stop: ["a", "b", "c", "d", "e"] }), /^sampling\.stop: 5 entries/],
    [ask(ids(1), {}, { task: "Not Good" }), /^task: expected 1 to 32 characters/],
    [ask(ids(1), {}, { requestId: "x".repeat(129) }), /^request_id: 129 characters/],
  ];
  for (const [request, message] of bad) {
    for (const error of [await failure(generate(request)), await failure(stream(request))]) {
      assert.equal(error.code, grpcStatus.INVALID_ARGUMENT, error.message);
      assert.match(error.details, message);
    }
  }
});

/** Sends bytes that no encoder of ours makes. */
function sendRaw(bytes: Uint8Array): Promise<unknown> {
  return new Promise((resolve, reject) => {
    (client as Client).makeUnaryRequest(
      "/switchyard.v1.InferenceService/Generate",
      (value: Buffer) => value,
      (value: Buffer) => value,
      Buffer.from(bytes),
      (error, response) => {
        if (error) reject(error);
        else resolve(response);
      },
    );
  });
}

test("a message that can not be decoded is INVALID_ARGUMENT, and a seed of 64 bits names itself", async () => {
  const garbage = await failure(sendRaw(Buffer.from([0x0a, 0xff, 0xff, 0xff])));
  assert.equal(garbage.code, grpcStatus.INVALID_ARGUMENT);
  assert.match(garbage.details, /can not be decoded/);
  // sampling { seed: 2^64 - 1 }
  const seed = Buffer.from([0x22, 11, 0x58, ...Array<number>(9).fill(0xff), 0x01]);
  const huge = await failure(sendRaw(seed));
  assert.equal(huge.code, grpcStatus.INVALID_ARGUMENT);
  assert.match(huge.details, /^sampling\.seed: is larger than 9007199254740991/);
  assert.ok(await generate(ask(ids(1), { maxTokens: 1 })), "the next request works");
});

test("a message above the limit is RESOURCE_EXHAUSTED", async () => {
  await withDoors({ api: { limits: { bodyBytes: 1024 } } }, async (via) => {
    const error = await failure(generate(ask(text("x".repeat(2000))), via));
    assert.equal(error.code, grpcStatus.RESOURCE_EXHAUSTED);
    assert.ok(await generate(ask(ids(1), { maxTokens: 1 }), via));
  });
});

test("a full queue is RESOURCE_EXHAUSTED, an unavailable service UNAVAILABLE, a slow request DEADLINE_EXCEEDED", async () => {
  let reason: string | undefined;
  const held = Promise.withResolvers<void>();
  const options: DoorOptions = {
    toy: { beforeStep: () => held.promise },
    engine: { maxNumSeqs: 1, maxQueue: 1, requestTimeoutMs: 300 },
    api: { unavailableReason: () => reason },
  };
  await withDoors(options, async (via, { engine }) => {
    const first = failure(generate(ask(ids(1), { maxTokens: 1 }), via));
    await waitFor("a running request", () => engine.state().running === 1);
    const second = failure(generate(ask(ids(1), { maxTokens: 1 }), via));
    await waitFor("a waiting request", () => engine.state().waiting === 1);
    const third = await failure(generate(ask(ids(1), { maxTokens: 1 }), via));
    assert.equal(third.code, grpcStatus.RESOURCE_EXHAUSTED);
    assert.match(third.details, /1 requests wait, the limit is 1/);
    for (const error of await Promise.all([first, second])) {
      assert.equal(error.code, grpcStatus.DEADLINE_EXCEEDED);
      assert.match(error.details, /0\.3 s/);
    }
    held.resolve();
    reason = "layer 2 expert 7 has no living copy";
    const away = await failure(generate(ask(ids(1), { maxTokens: 1 }), via));
    assert.equal(away.code, grpcStatus.UNAVAILABLE);
    assert.equal(away.details, reason);
  });
});

test("cancelling a call and running out of the caller's deadline end the sequence in the engine", async () => {
  const call = client.generateStream(ask(ids(4, 4), { maxTokens: 200 }));
  const cancelled = new Promise<ServiceError>((resolve) => call.on("error", resolve));
  call.once("data", () => call.cancel());
  assert.equal((await cancelled).code, grpcStatus.CANCELLED);
  await waitFor("no running sequence", () => doors.engine.state().running === 0, 2000);

  const held = Promise.withResolvers<void>();
  await withDoors({ toy: { beforeStep: () => held.promise } }, async (via, { engine }) => {
    const late = new Promise<ServiceError>((resolve, reject) => {
      via.generate(ask(ids(1)), new Metadata(), { deadline: Date.now() + 100 }, (error) => {
        if (error) resolve(error);
        else reject(new Error("the call succeeds"));
      });
    });
    assert.equal((await late).code, grpcStatus.DEADLINE_EXCEEDED);
    held.resolve();
    await waitFor("no running sequence", () => engine.state().running === 0, 2000);
  });
});

test("without a tokenizer token ids are served and text is FAILED_PRECONDITION", async () => {
  await withDoors({ tokenizer: "none" }, async (via) => {
    const response = await generate(ask(ids(5, 6), { maxTokens: 3 }), via);
    assert.deepEqual(response.tokenIds, toyContinuation([5, 6], 3, VOCAB));
    assert.equal(response.text, "");
    const error = await failure(generate(ask(text("x")), via));
    assert.equal(error.code, grpcStatus.FAILED_PRECONDITION);
    assert.match(error.details, /tokenizer/);
  });
});

test("with an API key a call needs it as metadata", async () => {
  await withDoors({ api: { apiKey: "secret" } }, async (via) => {
    const request = ask(ids(1), { maxTokens: 1 });
    assert.equal((await failure(generate(request, via))).code, grpcStatus.UNAUTHENTICATED);
    assert.equal((await failure(stream(request, via))).code, grpcStatus.UNAUTHENTICATED);
    const metadata = new Metadata();
    metadata.set("authorization", "Bearer secret");
    assert.ok(await generate(request, via, metadata));
  });
});
