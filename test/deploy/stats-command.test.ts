import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { after, test } from "node:test";

import { createStatistics } from "../../core/statistics/store.ts";
import { startRedis } from "../../bench/rig/redis.ts";
import { freePort } from "../../deploy/redis-process.ts";

const COMMAND = join(import.meta.dirname, "../../deploy/stats-command.ts");

const redis = await startRedis();
after(() => redis.close());

/** Counts `numTokens` decode tokens of a task, and flushes them. */
async function flush(modelHash: string, task: string, numTokens: number): Promise<void> {
  const shape = { modelName: `model-${modelHash}`, layers: [0, 1], numExperts: 4, topK: 1 };
  const statistics = createStatistics({ ...shape, modelHash, redisUrl: redis.url });
  const routing = {
    ids: new Uint32Array(numTokens).fill(2),
    weights: new Float32Array(numTokens).fill(1),
    topK: 1,
  };
  statistics.observer.onStep({
    sequences: [{ task, phase: "decode", numTokens }],
    numTokens,
    routing: new Map([
      [0, routing],
      [1, routing],
    ]),
  });
  await statistics.close();
}

interface Decayed {
  readonly decayedLoad: {
    readonly halfLifeSeconds: number;
    readonly layers: readonly {
      readonly layer: number;
      readonly imbalance: number;
      readonly expertTokens: readonly number[];
    }[];
  };
}

function stats(
  ...argv: readonly string[]
): Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }> {
  const source = `import { runStatsCommand } from ${JSON.stringify(COMMAND)};
    process.exitCode = await runStatsCommand(${JSON.stringify(argv)});`;
  const args = ["--input-type=module-typescript", "--eval", source];
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      args,
      { timeout: 20_000 },
      (_error, stdout, stderr) => {
        resolve({ code: child.exitCode, stdout, stderr });
      },
    );
  });
}

test("stats shows the one model there is, and lists several", async () => {
  const empty = await stats("--redis-url", redis.url);
  assert.equal(empty.code, 1);
  assert.match(empty.stderr, /no statistics in Redis at redis:\/\/127\.0\.0\.1:\d+/);

  await flush("aaaa", "math", 12);
  const one = await stats("--redis-url", redis.url);
  assert.equal(one.code, 0, one.stderr);
  assert.match(one.stdout, /^model-aaaa aaaa: 12 tokens in the last 10 min\n/);
  assert.match(one.stdout, /math +decode +12 +100\.0% +3\.00 /);

  await flush("bbbb", "code", 3);
  const several = await stats("--redis-url", redis.url);
  assert.match(several.stdout, /--model-hash aaaa .*model-aaaa/);
  assert.match(several.stdout, /--model-hash bbbb .*model-bbbb/);

  const json = await stats("--redis-url", redis.url, "--model-hash=b", "--json");
  const { model, tokens } = JSON.parse(json.stdout) as {
    readonly model: { readonly hash: string };
    readonly tokens: number;
  };
  assert.deepEqual([model.hash, tokens], ["bbbb", 3]);

  const half = ["--redis-url", redis.url, "--model-hash=b", "--half-life"];
  const slow = JSON.parse((await stats(...half, "3600", "--json")).stdout) as Decayed;
  assert.equal(slow.decayedLoad.halfLifeSeconds, 3600);
  const [first] = slow.decayedLoad.layers;
  assert.ok(first.expertTokens[2] > 2.9 && first.expertTokens[2] <= 3, `${first.expertTokens[2]}`);
  assert.deepEqual([first.layer, first.imbalance], [0, 3]);
  const text = await stats(...half, "60");
  assert.match(text.stdout, /tokens count half after every 60 s/);

  const nothing = await stats("--redis-url", redis.url, "--model-hash=b", "--task=poetry");
  assert.equal(nothing.code, 1);
  assert.match(
    nothing.stderr,
    /no tokens of task poetry in the last 600 s; there are code\/decode/,
  );
});

test("without a Redis the command says so and ends with 1", async () => {
  const { code, stderr } = await stats("--redis-url", `redis://u:pw@127.0.0.1:${await freePort()}`);
  assert.equal(code, 1);
  assert.match(stderr, /Redis at redis:\/\/127\.0\.0\.1:\d+ is not there after 2000 ms: .*REFUSED/);
  assert.doesNotMatch(stderr, /pw/);
});

test("--help names every flag, a bad value ends with 2", async () => {
  const [help, bad] = await Promise.all([stats("--help"), stats("--window", "0", "--phase=x")]);
  assert.equal(help.code, 0);
  for (const flag of [
    "--redis-url",
    "--model-hash",
    "--task",
    "--phase",
    "--window",
    "--half-life",
    "--json",
  ]) {
    assert.ok(help.stdout.includes(flag), flag);
  }
  assert.equal(bad.code, 2);
  assert.match(bad.stderr, /--window is "0"/);
  assert.match(bad.stderr, /--phase is "x"/);
});
