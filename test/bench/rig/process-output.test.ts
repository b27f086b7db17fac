import assert from "node:assert/strict";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import { test } from "node:test";

import { keepOutput, MAX_OUTPUT } from "../../../bench/rig/process-output.ts";

test("of a long output the end is kept, and every line is heard, in whatever pieces it comes", async () => {
  const streams = [new PassThrough(), new PassThrough()];
  const heard: string[] = [];
  const output = keepOutput(streams, (line) => heard.push(line));
  const lines = Array.from({ length: 6_000 }, (_, i) => `line ${i} é ${".".repeat(i % 80)}`);
  const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(""));
  assert.ok(bytes.length > MAX_OUTPUT);
  for (let from = 0; from < bytes.length; from += 997) {
    streams[0].write(bytes.subarray(from, from + 997));
  }
  for (const stream of streams) stream.end();
  await Promise.all(streams.map((stream) => once(stream, "close")));
  assert.deepEqual(heard, lines);
  assert.equal(output().length, MAX_OUTPUT);
  assert.ok(output().endsWith(`${lines[lines.length - 1]}\n`));
});
