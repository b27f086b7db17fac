import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";

const ROOT = join(import.meta.dirname, "..");

/** Place of the importing file, and what it may not write; NAME differs in each. */
const REFUSED: readonly (readonly [string, string])[] = [
  ["core/gpu/buffer.ts", 'import { NAME } from "webgpu";'],
  ["core/gpu/late.ts", 'export const NAME = await import("webgpu");'],
  ["core/gpu/device.ts", 'import { NAME } from "ioredis";'],
  ["core/platform/redis.ts", 'import { NAME } from "webgpu";'],
  ["core/statistics/store.ts", 'import { NAME } from "ioredis";'],
  ["core/platform/log.ts", 'import { NAME } from "@opentelemetry/sdk-node";'],
  ["core/platform/grpc.ts", 'import { NAME } from "pino";'],
  ["core/platform/telemetry.ts", 'import { NAME } from "prom-client";'],
  ["core/platform/config.ts", 'import { NAME } from "cli-progress";'],
  ["core/cpu/matmul.ts", 'import { NAME } from "@grpc/grpc-js";'],
  ["core/model/tokenizer/tokenizer.ts", 'import { NAME } from "@huggingface/jinja";'],
  ["core/model/tokenizer/chat-template.ts", 'import { NAME } from "@huggingface/tokenizers";'],
  ["router-service/api/chat.ts", 'import { NAME } from "fastify";'],
  ["router-service/engine/engine.ts", 'import { NAME } from "@grpc/grpc-js";'],
  ["router-service/main.ts", 'import { NAME } from "@grpc/grpc-js";'],
  ["deploy/up.ts", 'import { NAME } from "ioredis";'],
  ["expert-service/ffn.ts", 'import { NAME } from "webgpu";'],
  ["core/tensor.ts", 'import { NAME } from "../router-service/config.ts";'],
  ["core/gpu/kernels/gate.ts", 'import { NAME } from "../../../expert-service/config.ts";'],
  ["core/tensor.ts", 'import { NAME } from "../test/support/a.ts";'],
  ["core/placement/plan.ts", 'import { NAME } from "../tensor.ts";'],
  ["core/placement/plan.ts", 'import { NAME } from "zod";'],
  ["core/placement/plan.ts", 'import { NAME } from "node:fs";'],
  ["core/statistics/counters.ts", 'import type { NAME } from "../platform/redis.ts";'],
  ["router-service/engine/engine.ts", 'import { NAME } from "../cluster/dispatch.ts";'],
  ["router-service/engine/engine.ts", 'import type { NAME } from "../api/chat.ts";'],
  ["router-service/cluster/dispatch/dispatch.ts", 'import { NAME } from "../engine/scheduler.ts";'],
  [
    "router-service/cluster/dispatch/dispatch.ts",
    'import type { NAME } from "../engine/sequence.ts";',
  ],
  ["router-service/cluster/dispatch/dispatch.ts", 'import { NAME } from "../api/chat.ts";'],
  ["router-service/main.ts", 'import { NAME } from "../expert-service/ffn.ts";'],
  ["expert-service/server.ts", 'import { NAME } from "../router-service/config.ts";'],
  ["expert-service/server.ts", 'export * from "../router-service/engine/errors.ts";'],
  ["deploy/up.ts", 'import { NAME } from "../test/support/a.ts";'],
  ["bench/overlap.ts", 'import { NAME } from "../test/support/a.ts";'],
  ["bench/rig/cluster.ts", 'import type { NAME } from "../../test/support/a.ts";'],
  ["core/gpu/device.ts", "export const NAME = process.env.HOME;"],
  ["router-service/main.ts", "export const NAME = process.env.HOME;"],
];

const ALLOWED: readonly (readonly [string, string])[] = [
  ["core/gpu/device.ts", 'import { NAME } from "webgpu";'],
  ["core/platform/redis.ts", 'import { NAME } from "ioredis";'],
  ["core/platform/telemetry.ts", 'import { NAME } from "@opentelemetry/sdk-node";'],
  ["router-service/engine/engine.ts", 'import { NAME } from "@opentelemetry/api";'],
  ["core/platform/log.ts", 'import { NAME } from "pino";'],
  ["core/platform/redis.ts", 'import type { NAME } from "pino";'],
  ["core/platform/metrics.ts", 'import { NAME } from "prom-client";'],
  ["router-service/api/http-server.ts", 'import { NAME } from "fastify";'],
  ["router-service/api/chat.ts", 'import type { NAME } from "fastify";'],
  ["router-service/cluster/shards/shard-client.ts", 'import { NAME } from "@grpc/grpc-js";'],
  ["core/model/tokenizer/tokenizer.ts", 'import { NAME } from "@huggingface/tokenizers";'],
  ["core/placement/plan.ts", 'import { NAME } from "./load.ts";'],
  ["core/statistics/store.ts", 'import { NAME } from "../platform/redis.ts";'],
  [
    "router-service/cluster/dispatch/dispatch.ts",
    'import { NAME } from "../engine/run-experts.ts";',
  ],
  ["router-service/main.ts", 'import { NAME } from "./cluster/dispatch.ts";'],
  ["router-service/engine/engine.ts", 'import { NAME } from "../../core/tensor.ts";'],
  ["core/platform/config.ts", "export const NAME = process.env.HOME;"],
  ["test/core/a.test.ts", 'import { NAME } from "ioredis";'],
];

const folder = mkdtempSync(join(tmpdir(), "switchyard-lint-"));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Lints one file per case, each in a tree of its own, in one run; the cases that an import or environment rule refuses. */
function refusedCases(cases: readonly (readonly [string, string])[]): Set<number> {
  copyFileSync(join(ROOT, "tsconfig.json"), join(folder, "tsconfig.json"));
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
  copyFileSync(join(ROOT, "oxlint.config.ts"), join(folder, "oxlint.config.ts"));
  const refused = new Set<number>();
  cases.forEach(([path, line], index) => {
    const file = join(folder, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, `${line.replace("NAME", `name${index}`)}\n`, { flag: "a" });
  });
  const folders = [...new Set(cases.map(([path]) => path.split("/")[0]))];
  const result = spawnSync(join(ROOT, "node_modules/.bin/oxlint"), ["-f", "json", ...folders], {
    cwd: folder,
    encoding: "utf8",
    timeout: 60_000,
  });
  assert.notEqual(result.stdout, "", result.stderr || String(result.error));
  const report = JSON.parse(result.stdout) as {
    diagnostics: {
      code: string;
      filename: string;
      labels: { span: { line: number } }[];
    }[];
  };
  // Line of a file → case: the cases of one file stand in it in their order.
  const lines = new Map<string, number[]>();
  cases.forEach(([path], index) => lines.set(path, [...(lines.get(path) ?? []), index]));
  for (const { code, filename, labels } of report.diagnostics) {
    if (!/no-restricted-imports|no-process-env/.test(code)) continue;
    const index = lines.get(filename)?.[labels[0].span.line - 1];
    assert.ok(index !== undefined, `${filename}: ${code}`);
    refused.add(index);
  }
  return refused;
}

test("every import against a direction or past a door is refused, and no other", () => {
  const cases = [...REFUSED, ...ALLOWED];
  const refused = refusedCases(cases);
  cases.forEach(([path, line], index) => {
    assert.equal(refused.has(index), index < REFUSED.length, `${path}: ${line}`);
  });
});
