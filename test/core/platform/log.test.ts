import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";

import { formatLogLine } from "../../../core/platform/log.ts";

const ROOT = join(import.meta.dirname, "../../..");

test("without a terminal a log line is one JSON object on stderr, nothing on stdout", () => {
  const script =
    'import { createLogger } from "./core/platform/log.ts";' +
    'const logger = createLogger("router", "info");' +
    'logger.info({ httpPort: 8000 }, "listening"); logger.debug("not said");' +
    'logger.error({ err: new Error("why") }, "failed");';
  const child = spawnSync(process.execPath, ["--input-type=module", "--eval", script], {
    encoding: "utf8",
    cwd: ROOT,
  });
  assert.equal(child.stdout, "");
  const lines = child.stderr.trimEnd().split("\n");
  assert.equal(lines.length, 2, child.stderr);
  const [first, second] = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.deepEqual(
    { level: first.level, service: first.service, httpPort: first.httpPort, msg: first.msg },
    { level: "info", service: "router", httpPort: 8000, msg: "listening" },
  );
  assert.ok(Math.abs(Date.parse(String(first.time)) - Date.now()) < 60_000);
  assert.match(JSON.stringify(second.err), /why/);
});

test("a person reads time, level, service, message and facts", () => {
  const line =
    '{"level":"warn","time":"2025-01-02T03:04:05.678Z","service":"router","pid":7,"rank":1,"why":"two words","msg":"shard lost"}\n';
  assert.equal(
    formatLogLine(line, false),
    '03:04:05.678 warn  router   shard lost rank=1 why="two words"',
  );
  assert.ok(formatLogLine(line, true).includes("\u001B[33mwarn"));
});

test("lines that are not log lines come back as they are", () => {
  for (const line of ["plain", '{"a":1}', "[1]", "null", "{broken", ""]) {
    assert.equal(formatLogLine(`${line}\n`, false), line);
  }
});
