import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { test } from "node:test";

import { createLogger } from "../../../core/platform/log.ts";
import { createLines, type ProgressMessage } from "../../../core/platform/progress.ts";

const FIXTURE = join(import.meta.dirname, "fixtures/load.ts");

test("without a terminal a load is a few plain lines, from none to all", () => {
  const logger = createLogger("test", "silent");
  const seen: unknown[] = [];
  logger.info = (facts: unknown) => void seen.push((facts as { percent: number }).percent);
  const view = createLines(logger);
  for (let done = 0; done <= 1000; done++) view.update("weights", done, 1000);
  view.update("nothing", 0, 0);
  assert.deepEqual(seen, [0, 25, 50, 75, 100, 100]);
});

test("a load that is stopped says how far it came, and begins anew", () => {
  const logger = createLogger("test", "silent");
  const seen: unknown[] = [];
  logger.info = (facts: unknown, text?: string) => {
    const { done, total } = facts as { done: number; total: number };
    seen.push(`${text} ${done}/${total}`);
  };
  const view = createLines(logger, "draining");
  for (let done = 0; done <= 60; done++) view.update("experts", done, 100);
  view.stop("experts");
  view.stop("experts");
  view.update("experts", 0, 8);
  assert.deepEqual(seen, [
    "draining 0/100",
    "draining 25/100",
    "draining 50/100",
    "draining stopped 60/100",
    "draining 0/8",
  ]);
});

test("a spawned process tells its launcher of a load, in at most 51 messages", async () => {
  const child = fork(FIXTURE, { silent: true });
  const messages: ProgressMessage["progress"][] = [];
  child.on("message", (message: ProgressMessage) => messages.push(message.progress));
  await once(child, "close", { signal: AbortSignal.timeout(10_000) });
  assert.deepEqual(messages[0], { label: "weights", done: 0, total: 1000 });
  assert.deepEqual(messages.at(-1), { label: "weights", done: 1000, total: 1000 });
  assert.ok(messages.length > 2 && messages.length <= 51, `${messages.length}`);
});
