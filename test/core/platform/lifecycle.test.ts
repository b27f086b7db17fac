import assert from "node:assert/strict";
import { fork, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { isAlive } from "../../support/process-tree.ts";

const FIXTURE = join(import.meta.dirname, "fixtures/service.ts");
const DEADLINE_MS = 10_000;

/** The fixture as a child, its output so far, and waits with a deadline. */
function start(t: TestContext, mode: string[], options: { readonly ipc?: boolean } = {}) {
  const child: ChildProcess = options.ipc
    ? fork(FIXTURE, mode, { silent: true })
    : spawn(process.execPath, [FIXTURE, ...mode], { stdio: ["ignore", "pipe", "pipe"] });
  const output = { text: "" };
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const add = (chunk: Buffer) => {
    output.text += chunk.toString();
    child.emit("output");
  };
  child.stdout?.on("data", add);
  child.stderr?.on("data", add);
  const closed = once(child, "close", { signal });
  t.after(() => child.kill("SIGKILL"));
  return {
    child,
    output,
    /** Waits until the output matches. */
    async said(pattern: RegExp): Promise<RegExpExecArray> {
      for (;;) {
        const match = pattern.exec(output.text);
        if (match !== null) return match;
        assert.ok(child.stdout?.readable !== false, `ended without ${pattern}: ${output.text}`);
        await once(child, "output", { signal });
      }
    },
    /** Waits for the end of the process and of everyone who writes to its output. */
    async ended(): Promise<{ readonly code: unknown; readonly text: string }> {
      const [code] = (await closed) as unknown[];
      return { code, text: output.text };
    },
  };
}

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  test(`${signal} closes in reverse order and exits 0`, async (t) => {
    const service = start(t, []);
    await service.said(/ready/);
    service.child.kill(signal);
    const { code, text } = await service.ended();
    assert.equal(code, 0, text);
    assert.match(text, /closed second\n(.*\n)*closed first/);
  });
}

test("a second signal right after the first is the same wish", async (t) => {
  const service = start(t, ["slow"]);
  await service.said(/ready/);
  service.child.kill("SIGINT");
  await service.said(/closing second/);
  service.child.kill("SIGINT");
  const { code, text } = await service.ended();
  assert.equal(code, 0, text);
  assert.match(text, /closed first/);
});

test("a second signal later exits at once", async (t) => {
  const service = start(t, ["hang", "patient"]);
  await service.said(/ready/);
  const again = setInterval(() => service.child.kill("SIGINT"), 50);
  t.after(() => clearInterval(again));
  const { code, text } = await service.ended();
  assert.equal(code, 130, text);
});

test("what does not close within the deadline is named, and the exit code says so", async (t) => {
  const service = start(t, ["hang"]);
  await service.said(/ready/);
  service.child.kill("SIGTERM");
  const { code, text } = await service.ended();
  assert.equal(code, 1, text);
  assert.match(text, /"name":"stuck".*not closed within the deadline/);
});

test("a failing close is logged and does not keep the others open", async (t) => {
  const service = start(t, ["broken"]);
  await service.said(/ready/);
  service.child.kill("SIGTERM");
  const { code, text } = await service.ended();
  assert.equal(code, 1, text);
  assert.match(text, /"name":"broken".*no way.*closing failed/);
  assert.match(text, /closed second\n(.*\n)*closed first/);
});

test("an uncaught error is logged, everything is closed, the exit code is 1", async (t) => {
  const { code, text } = await start(t, ["throw"]).ended();
  assert.equal(code, 1, text);
  assert.match(text, /"level":"fatal".*thrown.*uncaught error/);
  assert.match(text, /closed first/);
});

test("an error that says all by its message is one line without a stack", async (t) => {
  const { code, text } = await start(t, ["misconfigured"]).ended();
  assert.equal(code, 1, text);
  const fatal = text.split("\n").filter((line) => line.includes('"level":"fatal"'));
  assert.equal(fatal.length, 1, text);
  assert.match(fatal[0], /"msg":"can not start: --limit 9: the model has 8"/);
  assert.equal(text.split("the model has 8").length, 2, text);
  assert.doesNotMatch(text, /stack|service\.ts:/);
  assert.match(text, /closed first/);
});

test("what fails by the stop alone is not fatal", async (t) => {
  const service = start(t, ["waiting"]);
  await service.said(/ready/);
  service.child.kill("SIGTERM");
  const { code, text } = await service.ended();
  assert.equal(code, 0, text);
  assert.doesNotMatch(text, /fatal/);
  assert.match(text, /closed first/);
});

test("a service tells its launcher when it is ready", async (t) => {
  const service = start(t, [], { ipc: true });
  const [message] = (await once(service.child, "message", {
    signal: AbortSignal.timeout(DEADLINE_MS),
  })) as unknown[];
  assert.deepEqual(message, { ready: true, port: 1234 });
});

for (const mode of ["ipc", "npm", "npm shell"]) {
  test(`a child ends in order when its parent is killed outright (${mode})`, async (t) => {
    const parent = start(t, ["parent", ...mode.split(" ")]);
    const [, pid] = await parent.said(/ready (\d+)/);
    t.after(() => {
      if (isAlive(Number(pid))) process.kill(Number(pid), "SIGKILL");
    });
    parent.child.kill("SIGKILL");
    // The output ends when nobody holds it any more: when the child has gone, too.
    const { text } = await parent.ended();
    assert.match(text, /the parent process is gone/);
    assert.match(text, /closed second\n(.*\n)*closed first/);
  });
}
