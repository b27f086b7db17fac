import assert from "node:assert/strict";
import http2 from "node:http2";
import { connect, type Socket } from "node:net";
import { test } from "node:test";

import {
  InferenceServiceService,
  SamplingParams,
} from "../../../proto/gen/switchyard/v1/inference.ts";
import { UnavailableError } from "../../../router-service/engine/errors.ts";
import type { EngineObserver } from "../../../router-service/engine/observer.ts";
import type { Engine, EngineEvent } from "../../../router-service/engine/request.ts";
import { toyEngine } from "../../support/engine-requests.ts";
import { toyContinuation } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { type DoorOptions, type Doors, openDoors, VOCAB } from "./doors.ts";

async function withDoors(
  options: DoorOptions,
  body: (doors: Doors) => Promise<void>,
): Promise<void> {
  const doors = await openDoors(options);
  try {
    await body(doors);
  } finally {
    await doors.close();
  }
}

/** Lets `count` steps of the runner pass, then holds them until `release`. */
function gate(count: number): { beforeStep: () => Promise<void>; release: () => void } {
  const held = Promise.withResolvers<void>();
  let steps = 0;
  return {
    beforeStep: async () => {
      if (steps++ >= count) await held.promise;
    },
    release: held.resolve,
  };
}

/** Events of a stream's text without their `data: `. */
function eventsOf(text: string): string[] {
  return text
    .trimEnd()
    .split("\n\n")
    .map((event) => event.replace(/^data: /, ""));
}

const streaming = { prompt: [1, 2, 3], max_tokens: 50, stream: true, return_token_ids: true };

test("a failure in mid-stream is one error event, then the end without [DONE]", async () => {
  let steps = 0;
  const beforeStep = () => {
    if (++steps > 3) throw new UnavailableError("shard 1 was lost");
  };
  await withDoors({ toy: { beforeStep } }, async (doors) => {
    const { status, body } = await doors.post("/v1/completions", { ...streaming, n: 3 });
    assert.equal(status, 200);
    const events = eventsOf(body);
    assert.ok(events.length > 3);
    const errors = events.filter((event) => event.startsWith('{"error"'));
    assert.equal(errors.length, 1);
    assert.deepEqual(JSON.parse(events.at(-1) ?? ""), {
      error: {
        message: "a step of the request failed: shard 1 was lost",
        type: "server_error",
        param: null,
        code: "unavailable",
      },
    });
    await waitFor("an idle engine", () => doors.engine.state().running === 0);
  });
});

test("when one choice of a request fails the others are aborted", async () => {
  let numSteps = 0;
  const beforeStep = () => {
    if (++numSteps === 3) throw new UnavailableError("shard 1 was lost");
  };
  await withDoors({ toy: { beforeStep }, engine: { maxNumSeqs: 2 } }, async (doors) => {
    const answer = await doors.post("/v1/completions", { ...streaming, n: 8, stream: false });
    assert.equal(answer.status, 503);
    assert.equal(numSteps, 3, "those that were still to come do not");
    const { running, waiting } = doors.engine.state();
    assert.equal(running + waiting, 0);
  });
});

test("a request of more completions than may wait is answered, in order, and others are not held up by it", async () => {
  const ended: string[] = [];
  const observer: EngineObserver = { onRequest: ({ id }) => ended.push(id) };
  const engine = { maxQueue: 2, maxNumSeqs: 2, observer };
  const { beforeStep, release } = gate(2);
  await withDoors({ toy: { beforeStep }, engine }, async (doors) => {
    const prompts = Array.from({ length: 6 }, (_, i) => [i, i + 1]);
    const ask = { prompt: prompts, n: 2, max_tokens: 3, ignore_eos: true, return_token_ids: true };
    const whole = doors.post("/v1/completions", ask);
    await waitFor("the first two to run", () => doors.engine.state().running === 2);
    const alone = doors.post("/v1/completions", { ...ask, prompt: [[9, 9]], n: 1 });
    await waitFor("another to wait", () => doors.engine.state().waiting === 1);
    release();
    assert.equal((await alone).status, 200);
    assert.ok(ended.length <= 6, `it had its turn after ${ended.length} others`);
    const { status, body } = await whole;
    assert.equal(status, 200);
    const choices = body.choices as { readonly index: number; readonly token_ids: number[] }[];
    assert.deepEqual(
      choices.map(({ index, token_ids }) => [index, token_ids]),
      prompts.flatMap((prompt, i) =>
        [0, 1].map((k) => [2 * i + k, toyContinuation(prompt, 3, VOCAB)]),
      ),
    );
    const indices = ended.flatMap((id) => /^cmpl-.*-(\d+)$/.exec(id)?.[1] ?? []).map(Number);
    assert.deepEqual(
      indices.filter((i) => i < 12),
      [...indices].sort((a, b) => a - b),
    );

    const streamed = await doors.post("/v1/completions", { ...ask, stream: true });
    assert.equal(streamed.status, 200);
    assert.equal(eventsOf(streamed.body).at(-1), "[DONE]");
  });
});

test("a request of many completions leaves a place in the queue to others", async () => {
  const { beforeStep, release } = gate(0);
  const engine = { maxQueue: 3, maxNumSeqs: 8 };
  await withDoors({ toy: { beforeStep }, engine }, async (doors) => {
    const ask = { ...streaming, max_tokens: 2, n: 8 };
    const many = doors.post("/v1/completions", ask);
    await waitFor("a queue with one place left", () => doors.engine.state().waiting === 2);
    const others = [ask, ask].map((body) => doors.post("/v1/completions", { ...body, n: 1 }));
    const refused = await Promise.race(others);
    assert.equal(refused.status, 429);
    release();
    const statuses = (await Promise.all([many, ...others])).map(({ status }) => status);
    assert.deepEqual(
      statuses.toSorted((a, b) => a - b),
      [200, 200, 429],
    );
  });
});

test("a full queue refuses a request of several completions before anything of it is answered", async () => {
  const { beforeStep, release } = gate(1);
  const engine = { maxQueue: 2, maxNumSeqs: 1 };
  await withDoors({ toy: { beforeStep }, engine }, async (doors) => {
    const one = { ...streaming, max_tokens: 8 };
    const ask = { ...one, n: 3 };
    const first = doors.post("/v1/completions", ask);
    const alone = doors.post("/v1/completions", one);
    await waitFor("one to run", () => doors.engine.state().running === 1);
    const other = doors.post("/v1/completions", one);
    await waitFor("a full queue", () => doors.engine.state().waiting === 2);
    for (const stream of [true, false]) {
      const refused = await doors.post("/v1/completions", { ...ask, stream });
      assert.equal(refused.status, 429);
      assert.equal(refused.body.error.code, "queue_full");
    }
    release();
    for (const answer of await Promise.all([first, alone, other])) assert.equal(answer.status, 200);
  });
});

/** Posts over a bare socket, so that the test decides when to read. */
function postOverSocket(doors: Doors, body: object): Socket {
  const { hostname, port } = new URL(doors.url);
  const json = JSON.stringify(body);
  const socket = connect(Number(port), hostname);
  socket.write(
    `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${json.length}\r\n\r\n${json}`,
  );
  return socket;
}

for (const stream of [true, false]) {
  const kind = stream ? "streamed" : "whole";
  test(`a client that goes away while its ${kind} answer is made frees the engine`, async () => {
    await withDoors({}, async (doors) => {
      const socket = postOverSocket(doors, { ...streaming, max_tokens: 250, stream });
      await waitFor("a running request", () => doors.engine.state().running === 1);
      socket.destroy();
      await waitFor("an idle engine", () => doors.engine.state().running === 0, 2000);
      const { freeBlocks, totalBlocks } = doors.engine.state();
      assert.equal(freeBlocks, totalBlocks);
      assert.deepEqual(doors.logged, [], "nobody is to blame");
    });
  });
}

/** An engine that never comes to an end by itself; `left` counts the readers that have gone. */
function endlessEngine(engine: Engine): { engine: Engine; left: () => number } {
  let left = 0;
  const top = Array.from({ length: 20 }, (_, tokenId) => ({ tokenId, logprob: -1 }));
  async function* submit(): AsyncGenerator<EngineEvent> {
    yield { type: "prompt", cachedTokens: 0 };
    try {
      for (;;) yield { type: "token", tokenId: 9, logprobs: { token: top[9], top } };
    } finally {
      left++;
    }
  }
  const state = () => engine.state();
  const room = () => undefined;
  const endless = {
    maxModelLen: 256,
    maxNumSeqs: 32,
    room,
    state,
    close: () => engine.close(),
    submit,
  };
  return { engine: endless, left: () => left };
}

test("a client that never reads is dropped, and all its sequences are left", async () => {
  const { engine: real } = toyEngine({ numBlocks: 1 });
  const { engine, left } = endlessEngine(real);
  await withDoors({ api: { engine, limits: { unreadMs: 100 } } }, async (doors) => {
    const socket = postOverSocket(doors, { ...streaming, logprobs: 20, n: 16 });
    socket.pause();
    socket.on("error", () => undefined);
    await waitFor("all readers to leave", () => left() === 16);
    socket.destroy();
  });
  await real.close();
});

test("a gRPC client that never reads is dropped, and its sequence is left", async () => {
  const { engine: real } = toyEngine({ numBlocks: 1 });
  const { engine, left } = endlessEngine(real);
  await withDoors({ api: { engine, limits: { unreadMs: 100 } } }, async (doors) => {
    // grpc-js itself reads ahead without bound, so the client is one that speaks bare HTTP/2.
    const session = http2.connect(`http://${doors.grpcAddress}`);
    const stream = session.request({
      ":method": "POST",
      ":path": InferenceServiceService.generateStream.path,
      "content-type": "application/grpc",
      te: "trailers",
    });
    stream.on("error", () => undefined);
    const message = InferenceServiceService.generateStream.requestSerialize({
      prompt: { $case: "tokenIds", value: { ids: [1] } },
      sampling: { ...SamplingParams.decode(new Uint8Array()), logprobs: 20 },
      task: "",
      requestId: "",
    });
    const frame = Buffer.alloc(5 + message.length);
    frame.writeUInt32BE(message.length, 1);
    message.copy(frame, 5);
    stream.end(frame);
    await waitFor("the reader to leave", () => left() === 1);
    session.destroy();
  });
  await real.close();
});

test("a stop lets open requests end, refuses new ones, and ends late ones with an error event", async () => {
  const { beforeStep, release } = gate(3);
  const doors = await openDoors({ toy: { beforeStep } });
  const late = doors.post("/v1/completions", streaming);
  await waitFor("steps", () => doors.runner.batches.length >= 4);
  const closed = doors.close(200);
  await assert.rejects(doors.post("/v1/completions", streaming).then(refusedOrThrow));
  const { body } = await late;
  release();
  const last = eventsOf(body).at(-1) ?? "";
  assert.equal(JSON.parse(last).error.message, "the service is stopping");
  await closed;
});

test("a request that ends within the grace of a stop is answered whole", async () => {
  const doors = await openDoors();
  const answer = doors.post("/v1/completions", { ...streaming, stream: false });
  await waitFor("a running request", () => doors.engine.state().running === 1);
  const closed = doors.close(5000);
  assert.equal((await answer).body.usage.completion_tokens, 50);
  await closed;
});

/** A refused request counts as much as a refused connection. */
function refusedOrThrow({ status, body }: { status: number; body: unknown }): void {
  if (status === 503) throw new UnavailableError(JSON.stringify(body));
}
