import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { delimiter, join } from "node:path";
import { test } from "node:test";

import { foreignEnvironment } from "../../core/platform/config.ts";
import { greeting } from "../../deploy/local-cluster.ts";

const ROOT = join(import.meta.dirname, "../..");
const LAUNCHER = join(ROOT, "deploy/switchyard.mjs");

function run(argv: string[], node = process.execPath) {
  return spawnSync(node, [LAUNCHER, ...argv], { cwd: "/", encoding: "utf8", timeout: 30_000 });
}

/** A Node of the machine that can not run TypeScript, if there is one. */
function olderNode(): string | undefined {
  return (foreignEnvironment("PATH") ?? "")
    .split(delimiter)
    .map((folder) => join(folder, "node"))
    .filter((path) => existsSync(path) && realpathSync(path) !== realpathSync(process.execPath))
    .find((path) => {
      const version = spawnSync(path, ["--version"], { encoding: "utf8" }).stdout;
      return Number(/^v(\d+)/.exec(version)?.[1] ?? 99) < 24;
    });
}

test("--help lists every subcommand, and each of them its flags", () => {
  const help = run(["--help"]);
  assert.equal(help.status, 0, help.stderr);
  const names = [...help.stdout.matchAll(/^ {2}(\w+) {2,}/gm)].map((match) => match[1]);
  const known = "up router shard stats placement plan drain inspect bench";
  assert.deepEqual(names, known.split(" "));
  for (const name of names) {
    const own = run([name, "--help"]);
    assert.equal(own.status, 0, `${name}: ${own.stderr}`);
    assert.match(own.stdout, new RegExp(`^Usage: switchyard ${name} \\[flags\\]$`, "m"));
    assert.match(own.stdout, /^ {2}--help /m);
  }
});

test("an unknown subcommand, or none, is refused with the usage", () => {
  const unknown = run(["shrad"]);
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /unknown subcommand "shrad", "shard" exists/);
  assert.equal(run(["constructor"]).status, 2);
  const none = run([]);
  assert.equal(none.status, 2);
  assert.match(none.stdout, /Usage: switchyard <subcommand>/);
});

test("the shard to drain may stand after the flags", () => {
  const drained = run(["drain", "--wait", "--url", "http://127.0.0.1:1", "1"]);
  assert.equal(drained.status, 1);
  assert.match(drained.stderr, /router at http:\/\/127\.0\.0\.1:1: /);
});

test("every bad flag of up is listed", () => {
  const limit = "--router-memory-limit=0";
  const bad = run(["up", "--shards", "many", "--wire=f64", "--shard=1", limit]);
  assert.equal(bad.status, 2);
  assert.match(bad.stderr, /--shard: unknown flag, --shards exists/);
  assert.match(bad.stderr, /--shards is "many", expected an integer from 0 to 64/);
  assert.match(bad.stderr, /--wire is "f64", expected one of f16, f32, int8/);
  assert.match(bad.stderr, /--router-memory-limit is "0", expected an integer/);
});

const older = olderNode();
test(
  "a Node that is too old for TypeScript hands over to the pinned one",
  { skip: older === undefined ? "no Node older than 24 on this machine" : false },
  () => {
    const version = run(["--version"], older);
    assert.equal(version.status, 0, version.stderr);
    assert.match(version.stdout, /^\d+\.\d+\.\d+\n$/);
    assert.equal(run(["nonsense"], older).status, 2);
  },
);

test("the greeting begins with ready and a URL, and shows no password", () => {
  const config = {
    model: join(ROOT, "models/demo-moe"),
    servedModelName: undefined,
    apiKey: undefined,
    shards: 2,
  };
  const url = "http://127.0.0.1:8000";
  const text = greeting(config, url, "redis://:secret@10.0.0.1:6379/0");
  assert.match(text, /^ready http:\/\/127\.0\.0\.1:8000\n/);
  assert.match(text, /curl http:\/\/127\.0\.0\.1:8000\/v1\/chat\/completions .*"model":"demo-moe"/);
  assert.match(text, /npx switchyard stats --redis-url redis:\/\/:PASSWORD@10\.0\.0\.1:6379\/0/);
  assert.doesNotMatch(text, /secret/);
  const tiny = { ...config, model: join(ROOT, "test/goldens/qwen2_moe") };
  assert.match(greeting(tiny, url, undefined), /\/v1\/completions .*"prompt":\[1,2,3\]/);
  assert.match(text, /npx switchyard placement --url http:\/\/127\.0\.0\.1:8000\n/);
  assert.doesNotMatch(greeting({ ...config, shards: 0 }, url, undefined), /switchyard placement/);
  const guarded = greeting({ ...config, apiKey: "secret" }, url, undefined);
  assert.match(guarded, /authorization: Bearer/);
  assert.doesNotMatch(guarded, /secret|switchyard stats/);
});
