import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { parseConfig } from "../../core/platform/config.ts";
import { planBody, readLoad } from "../../deploy/plan-body.ts";
import { planConfigSchema } from "../../deploy/plan-flags.ts";

const dir = mkdtempSync(join(tmpdir(), "switchyard-load-"));
after(() => rmSync(dir, { recursive: true, force: true }));

const configOf = (...argv: readonly string[]) => {
  const parsed = parseConfig(planConfigSchema, argv, {});
  assert.equal(parsed.kind, "config", JSON.stringify(parsed));
  return parsed.kind === "config" ? parsed.config : assert.fail();
};

test("flags of a plan become the fields of a what-if, `local` a rank among them", () => {
  const shards = ["--without", "1,local", "--memory", "3=0.00001", "--draining", "3"];
  const bounds = ["--move-bytes", "5e9", "--steps", "1000", "--tokens-per-step", "64"];
  assert.deepEqual(planBody(configOf(...shards, ...bounds), { "1": [1, 2] }), {
    shards: [
      { rank: 1, absent: true },
      { rank: "local", absent: true },
      { rank: 3, draining: true, memory_bytes: 10737 },
    ],
    tokens_per_step: 64,
    load: { "1": [1, 2] },
    move_bytes: 5e9,
    steps: 1000,
  });
  assert.deepEqual(planBody(configOf("--memory", "local=8", "--rtt", "0=0.5"), undefined), {
    shards: [
      { rank: "local", memory_bytes: 8 * 2 ** 30 },
      { rank: 0, rtt_seconds: 0.5 },
    ],
  });
  assert.throws(() => planBody(configOf("--memory", "8"), undefined), /--memory 8: name the shard/);
});

test("the load of a plan is read from a file, and what is no such file is named", async () => {
  const file = (name: string, text: string) => {
    writeFileSync(join(dir, name), text);
    return join(dir, name);
  };
  assert.deepEqual(await readLoad(file("good.json", '{"1": [3, 4]}')), { "1": [3, 4] });
  for (const [path, said] of [
    [join(dir, "none.json"), /--load .*none\.json: no such file/],
    [file("list.json", "[1]"), /--load .*list\.json: /],
    [file("cut.json", '{"1":'), /--load .*cut\.json: .*JSON/],
  ] as const) {
    await assert.rejects(readLoad(path), said);
  }
});
