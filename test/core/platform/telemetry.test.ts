import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

import { wantsTraces } from "../../../core/platform/telemetry.ts";
import { startOtlpCollector } from "../../support/otlp-collector.ts";

const TELEMETRY = join(import.meta.dirname, "../../../core/platform/telemetry.ts");

/** Runs a module in a process of its own that has only the given OTEL_* variables; answers what it prints. */
async function run(source: string, env: Readonly<Record<string, string>>): Promise<string> {
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith("OTEL_"));
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ["--input-type=module-typescript", "--eval", source],
    { env: { ...Object.fromEntries(own), ...env }, timeout: 20_000 },
  );
  return stdout;
}

const PRELUDE = `
  import { startTelemetry } from ${JSON.stringify(TELEMETRY)};
  const log = { info: () => {}, warn: (facts, message) => console.log(message, facts.reason) };
  const telemetry = await startTelemetry("switchyard-router", log);
`;

const MAKE_SPAN = `
  const { trace } = await import(${JSON.stringify(import.meta.resolve("@opentelemetry/api"))});
  trace.getTracer("test").startSpan("hello", { attributes: { answer: 42 } }).end();
  await telemetry.shutdown();
`;

/** Packages of OpenTelemetry that a process with these variables loads to start its telemetry. */
async function loadedPackages(env: Readonly<Record<string, string>>): Promise<Set<string>> {
  const output = await run(
    `import { registerHooks } from "node:module";
    const seen = [];
    registerHooks({ load: (url, context, next) => (seen.push(url), next(url, context)) });
    const { startTelemetry } = await import(${JSON.stringify(TELEMETRY)});
    const log = { info: () => {}, warn: () => {} };
    await (await startTelemetry("switchyard-router", log)).shutdown();
    console.log(JSON.stringify(seen));`,
    env,
  );
  const urls = JSON.parse(output) as string[];
  return new Set(urls.flatMap((url) => /@opentelemetry\/[\w-]+/.exec(url)?.[0] ?? []));
}

test("without OTEL_* variables nothing of the SDK is loaded", async () => {
  assert.deepEqual([...(await loadedPackages({}))], ["@opentelemetry/api"]);
  const on = await loadedPackages({ OTEL_TRACES_EXPORTER: "console" });
  assert.ok(on.has("@opentelemetry/sdk-node") && on.has("@opentelemetry/sdk-trace"));
});

test("an OTLP endpoint is all it takes: the last spans arrive before shutdown is done", async () => {
  const collector = await startOtlpCollector();
  const output = await run(PRELUDE + MAKE_SPAN, {
    ...collector.env,
    OTEL_BSP_SCHEDULE_DELAY: "60000",
  });
  assert.equal(output, "");
  assert.equal(collector.spans.length, 1);
  const [span] = collector.spans;
  assert.equal(span.name, "hello");
  assert.equal(span.service, "switchyard-router");
  assert.deepEqual(span.attributes, { answer: 42 });
  await collector.close();
});

test("OTEL_SERVICE_NAME names the service", async () => {
  const collector = await startOtlpCollector();
  await run(PRELUDE + MAKE_SPAN, { ...collector.env, OTEL_SERVICE_NAME: "front-door" });
  assert.deepEqual(
    collector.spans.map(({ service }) => service),
    ["front-door"],
  );
  await collector.close();
});

test("a collector that never answers holds a shutdown up for its deadline only", async () => {
  const silent = createServer(() => undefined);
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  const { port } = silent.address() as AddressInfo;
  const output = await run(
    `${PRELUDE}const startedAt = performance.now();${MAKE_SPAN}
    console.log(performance.now() - startedAt < 4000 ? "in time" : "late");process.exit(0);`,
    { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}` },
  );
  assert.match(output, /the last spans were not delivered not done in 3000 ms\nin time/);
  silent.close();
});

test("traces are wanted where an endpoint or exporter is named and nothing forbids them", () => {
  const wants = (env: Record<string, string>) => wantsTraces((name) => env[name]);
  assert.equal(wants({}), false);
  assert.equal(wants({ OTEL_SERVICE_NAME: "x", OTEL_TRACES_SAMPLER: "always_on" }), false);
  assert.equal(wants({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318" }), true);
  assert.equal(wants({ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://c:4318/v1/traces" }), true);
  assert.equal(wants({ OTEL_TRACES_EXPORTER: "console" }), true);
  assert.equal(wants({ OTEL_TRACES_EXPORTER: "none" }), false);
  assert.equal(
    wants({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c:4318", OTEL_SDK_DISABLED: "true" }),
    false,
  );
});
