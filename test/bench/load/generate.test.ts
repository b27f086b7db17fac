import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test, type TestContext } from "node:test";

import { generateLoad } from "../../../bench/load/generate.ts";
import { joinGoodput, loadSchema, type LoadOptions } from "../../../bench/load/options.ts";
import { timePerOutputToken } from "../../../bench/load/statistics.ts";
import { runBenchCommand } from "../../../bench/serve.ts";
import { parseConfig } from "../../../core/platform/config.ts";
import { startDelayedServer, type DelayedAnswers } from "../../support/delayed-sse-server.ts";

const scratch = await mkdtemp(path.join(tmpdir(), "switchyard-bench-"));
after(() => rm(scratch, { recursive: true }));

function optionsOf(flags: string): LoadOptions {
  const parsed = parseConfig(loadSchema, joinGoodput(flags.split(" ")), {});
  if (parsed.kind !== "config") assert.fail(JSON.stringify(parsed));
  return parsed.config;
}

async function serverFor(t: TestContext, answers: Partial<DelayedAnswers>) {
  const server = await startDelayedServer({
    firstTokenMs: 40,
    gapMs: 20,
    numTokens: 4,
    ...answers,
  });
  t.after(() => server.close());
  return server;
}

test("latencies are those that the server makes, by their definitions", async (t) => {
  const server = await serverFor(t, {});
  const { records, summary } = await generateLoad(
    optionsOf(
      `--url ${server.url} --num-prompts 3 --max-concurrency 1 --input-len 9 --output-len 4 --ignore-eos`,
    ),
  );
  assert.equal(server.bodies.length, 4, "one warm-up and three measured requests");
  assert.equal(summary.completed, 3);
  assert.equal(summary.totalInputTokens, 27);
  assert.equal(summary.totalOutputTokens, 12);
  for (const record of records) {
    assert.equal(record.kind, "completed");
    if (record.kind !== "completed") continue;
    // Timers may fire a millisecond early; on a busy machine they fire late, so only the lower bounds are sharp.
    assert.ok(record.ttftMs >= 39 && record.ttftMs < 400, `ttft ${record.ttftMs}`);
    assert.equal(record.itlMs.length, 3, "a token without text counts, the finish chunk does not");
    assert.ok(record.itlMs.reduce((sum, gap) => sum + gap, 0) >= 57);
    const gaps = record.itlMs.reduce((sum, gap) => sum + gap, 0);
    assert.ok(Math.abs(record.e2elMs - record.ttftMs - gaps) < 1e-6);
    assert.equal(timePerOutputToken(record), (record.e2elMs - record.ttftMs) / 3);
  }
  assert.ok(summary.durationSeconds >= 0.29, "three requests one after another");
  const [body] = server.bodies;
  assert.equal(body.model, "delayed");
  assert.equal(body.max_tokens, 4);
  assert.equal(body.ignore_eos, true);
  assert.deepEqual(body.stream_options, { include_usage: true });
  assert.equal((body.prompt as number[]).length, 9);
});

test("a closed loop keeps exactly the concurrency busy", async (t) => {
  const server = await serverFor(t, {});
  const { summary } = await generateLoad(
    optionsOf(`--url ${server.url} --num-prompts 9 --max-concurrency 3 --num-warmups 0`),
  );
  assert.equal(summary.completed, 9);
  assert.equal(server.peak(), 3);
});

test("demo texts go to the chat endpoint as text, to completions as token ids", async (t) => {
  const server = await serverFor(t, { firstTokenMs: 1, gapMs: 1 });
  const flags = `--url ${server.url} --dataset demo-texts --num-prompts 2 --num-warmups 0 --input-len 20`;
  const chat = await generateLoad(optionsOf(`${flags} --endpoint chat`));
  const completions = await generateLoad(optionsOf(flags));
  assert.equal(chat.summary.completed + completions.summary.completed, 4);
  const texts = server.bodies.slice(0, 2).map(({ messages }) => {
    const [message] = messages as { role: string; content: string }[];
    assert.equal(message.role, "user");
    return message.content;
  });
  assert.ok(texts.every((text) => text.length > 20));
  assert.notEqual(texts[0], texts[1]);
  assert.equal((server.bodies[2].prompt as number[]).length, 20);
});

test("an open loop sends at its arrival times, whatever is still under way", async (t) => {
  const server = await serverFor(t, { firstTokenMs: 300, numTokens: 1 });
  const { summary } = await generateLoad(
    optionsOf(`--url ${server.url} --num-prompts 12 --request-rate 100 --num-warmups 0`),
  );
  assert.equal(summary.completed, 12);
  assert.ok(server.peak() > 6, `${server.peak()} at once`);
  assert.ok(server.arrivals[11] - server.arrivals[0] > 20, "not all at once");
  assert.equal(summary.latencies.tpot.p99, 0, "requests of one token have no TPOT");
});

test("failures are counted with their reasons, and leave the figures of the others alone", async (t) => {
  const behaviours = ["refuse", "error event", "cut", "no done", "hang", undefined] as const;
  const server = await serverFor(t, { misbehave: (n) => behaviours[n] });
  const { summary } = await generateLoad(
    optionsOf(
      `--url ${server.url} --num-prompts 6 --num-warmups 0 --max-concurrency 1 --request-timeout 0.8`,
    ),
  );
  assert.equal(summary.completed, 1);
  assert.equal(summary.failed, 5);
  const { "HTTP 429 queue_full": refused, ...others } = summary.failures;
  assert.equal(refused, 1);
  assert.equal(others["error event: unavailable"], 1);
  assert.equal(others["the stream ended without [DONE]"], 1);
  assert.equal(others["no answer within the request's deadline"], 1);
  assert.equal(Object.keys(others).length, 4, JSON.stringify(others));
  assert.equal(summary.totalOutputTokens, 4);
});

test("a server that is not there fails every request by the connection's error", async (t) => {
  const server = await serverFor(t, {});
  await server.close();
  const flags = `--url ${server.url} --served-model-name any --num-prompts 2 --num-warmups 0`;
  const { summary } = await generateLoad(optionsOf(flags));
  assert.deepEqual(summary.failures, { ECONNREFUSED: 2 });
});

test("the command writes the fields of vllm bench serve", async (t) => {
  const server = await serverFor(t, {});
  const file = path.join(scratch, "result.json");
  const log = t.mock.method(console, "log", () => {});
  const flags = `--url ${server.url} --num-prompts 2 --num-warmups 0 --save-result ${file}`;
  const levels = "--goodput ttft:5000 tpot:5000 e2el:5000";
  const status = await runBenchCommand(`${flags} ${levels}`.split(" "));
  assert.equal(status, 0);
  assert.match(String(log.mock.calls[0].arguments[0]), /\| delayed \|/);
  const result = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
  const expected = ["completed", "failed", "total_input_tokens", "total_output_tokens"];
  expected.push("duration", "request_throughput", "request_goodput", "output_throughput");
  expected.push("total_token_throughput", "max_concurrency", "request_rate", "burstiness");
  for (const latency of ["ttft", "tpot", "itl", "e2el"])
    for (const statistic of ["mean", "median", "std", "p50", "p95", "p99"])
      expected.push(`${statistic}_${latency}_ms`);
  for (const name of expected) assert.ok(name in result, `${name} is missing`);
  assert.equal(result.completed, 2);
  assert.equal(result.request_goodput, result.request_throughput);
  assert.deepEqual(result.output_lens, [4, 4]);
});

test("levels of goodput may follow one by one, as vllm bench serve takes them", () => {
  const options = optionsOf("--goodput ttft:200 tpot:50 --num-prompts 3");
  assert.deepEqual(options.goodput, ["ttft:200", "tpot:50"]);
  assert.equal(options.numPrompts, 3);
  assert.equal(parseConfig(loadSchema, ["--goodput", "p99:4"], {}).kind, "invalid");
});
