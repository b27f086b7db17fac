import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

import fc from "fast-check";
import { z } from "zod";

import { helpText, parseConfig, toArguments } from "../../../core/platform/config.ts";
import { describeFlags } from "../../../core/platform/flags.ts";
import { hostPort } from "../../../core/platform/service-options.ts";
import { upConfigSchema } from "../../../deploy/up-config.ts";
import { expertConfigSchema } from "../../../expert-service/config.ts";
import { routerAbout, routerConfigSchema } from "../../../router-service/config.ts";

const schema = z.object({
  httpPort: z
    .int()
    .min(0)
    .max(65535)
    .default(8000)
    .meta({ description: "Port", placeholder: "PORT" }),
  timeout: z.number().positive().default(2).meta({ description: "Wait", unit: "s" }),
  wire: z.enum(["f16", "f32"]).default("f16").meta({ description: "Dtype" }),
  verbose: z.boolean().default(false).meta({ description: "Says more" }),
  shards: z
    .array(z.string().regex(/^\S+:\d+$/))
    .default([])
    .meta({ description: "Shards", expectation: "host:port,host:port" }),
  apiKey: z.string().min(3).optional().meta({ description: "Key", secret: true }),
  name: z.string().meta({ description: "a name" }),
});

function config(argv: string[], env: Record<string, string> = {}) {
  const parsed = parseConfig(schema, ["--name=x", ...argv], env);
  assert.equal(parsed.kind, "config", JSON.stringify(parsed));
  return parsed.kind === "config" ? parsed.config : assert.fail();
}

function problems(argv: string[], env: Record<string, string> = {}) {
  const parsed = parseConfig(schema, argv, env);
  assert.equal(parsed.kind, "invalid", JSON.stringify(parsed));
  return parsed.kind === "invalid" ? parsed.problems : assert.fail();
}

test("a flag wins over a variable, a variable over the default", () => {
  const env = { SWITCHYARD_HTTP_PORT: "7000", SWITCHYARD_TIMEOUT: "0.5" };
  assert.equal(config([]).httpPort, 8000);
  assert.equal(config([], env).httpPort, 7000);
  assert.equal(config(["--http-port", "6000"], env).httpPort, 6000);
  assert.equal(config(["--http-port=6000"], env).httpPort, 6000);
  assert.equal(config(["--http-port=6000"], env).timeout, 0.5);
});

test("an empty flag takes back what the environment says", () => {
  const env = { SWITCHYARD_SHARDS: "2", SWITCHYARD_HTTP_PORT: "" };
  assert.deepEqual(config(["--shards="], env).shards, []);
  assert.equal(config(["--shards="], env).httpPort, 8000);
});

test("booleans take no value, a value by =, or a --no- form", () => {
  assert.equal(config(["--verbose", "--http-port", "1"]).verbose, true);
  assert.equal(config(["--verbose=false"]).verbose, false);
  assert.equal(config(["--no-verbose"], { SWITCHYARD_VERBOSE: "1" }).verbose, false);
  assert.equal(config([], { SWITCHYARD_VERBOSE: "true" }).verbose, true);
});

test("lists are split at commas", () => {
  assert.deepEqual(config(["--shards", "a:1, b:2,"]).shards, ["a:1", "b:2"]);
});

test("every problem is listed with its name, value and expectation", () => {
  assert.deepEqual(
    problems(
      ["--http-port", "70000", "--timeout=fast", "--htp-port", "1", "stray", "--shards", "a:1,b"],
      { SWITCHYARD_WIRE: "f64", SWITCHYARD_VERBOSE: "maybe" },
    ),
    [
      "--htp-port: unknown flag, --http-port exists",
      '"stray": unexpected argument, flags begin with --',
      '--http-port is "70000", expected an integer from 0 to 65535',
      '--timeout is "fast", expected a number above 0 (s)',
      'SWITCHYARD_WIRE is "f64", expected one of f16, f32',
      'SWITCHYARD_VERBOSE is "maybe", expected true or false',
      '--shards is "a:1,b", expected host:port,host:port',
      "--name (or SWITCHYARD_NAME) is missing, expected a name",
    ],
  );
});

test("what may stand without its flag stands before, between or after flags, once", () => {
  const shaped = z.object({
    rank: z.int().min(0).meta({ description: "Rank", placeholder: "RANK", positional: true }),
    wait: z.boolean().default(false).meta({ description: "Waits" }),
    url: z.string().default("http://here").meta({ description: "Where" }),
  });
  const parse = (...argv: string[]) => parseConfig(shaped, argv, {});
  const expected = { kind: "config", config: { rank: 1, wait: true, url: "http://there" } };
  const url = ["--url", "http://there"];
  assert.deepEqual(parse("1", "--wait", ...url), expected);
  assert.deepEqual(parse("--wait", "1", ...url), expected);
  assert.deepEqual(parse(...url, "--wait", "1"), expected);
  assert.deepEqual(parse(...url, "--wait", "--rank", "1"), expected);
  const refused: readonly [argv: string[], problem: string][] = [
    [["1", "2"], 'RANK is "2", and RANK is "1" already'],
    [["1", "--rank=2"], '--rank is "2", and RANK is "1" already'],
    [["--rank", "2", "1"], 'RANK is "1", and --rank is "2" already'],
    [["--wait", "-1"], 'RANK is "-1", expected an integer from 0 up'],
    [["--wiat", "1"], "--wiat: unknown flag, --wait exists"],
  ];
  for (const [argv, problem] of refused) {
    assert.deepEqual(parse(...argv), { kind: "invalid", problems: [problem] });
  }
});

test("a flag without its value, hexadecimal and blank numbers are problems", () => {
  assert.deepEqual(problems(["--name=x", "--http-port", "--wire", "f32"]), [
    "--http-port: value is missing, expected an integer from 0 to 65535",
  ]);
  for (const text of ["0x10", " ", "1.5", "1e99", "NaN"]) {
    assert.match(
      problems(["--name=x", `--http-port=${text}`])[0],
      /^--http-port is ".*", expected/,
    );
  }
});

test("a secret's value shows in no problem and on no command line", () => {
  const listed = problems(["--name=x", "--api-key=ab"]).join();
  assert.match(listed, /--api-key is \(not shown\), expected/);
  const { argv, env } = toArguments(schema, config(["--api-key=abcdef"]));
  assert.ok(!argv.join(" ").includes("abcdef"));
  assert.deepEqual(env, { SWITCHYARD_API_KEY: "abcdef" });
});

test("the config is frozen, its lists as well", () => {
  const parsed = config(["--shards=a:1"]);
  assert.throws(() => Object.assign(parsed, { httpPort: 1 }), TypeError);
  assert.throws(() => parsed.shards.push("b:2"), TypeError);
});

test("--help wins over problems and names every flag, default and unit", () => {
  assert.equal(parseConfig(schema, ["--nonsense", "--help"], {}).kind, "help");
  const text = helpText(routerConfigSchema, routerAbout);
  for (const expected of [
    /--http-port PORT +Port .*\(default 8000\)/,
    /--dispatch-timeout SECONDS .*\(default 2 s\)/,
    /--device auto\|webgpu\|cpu/,
    /--model DIR .*\(default models\/demo-moe\)/,
    /SWITCHYARD_HTTP_PORT/,
  ]) {
    assert.match(text, expected);
  }
});

test("arguments made from any config parse back to that config", () => {
  const any = fc.record(
    {
      httpPort: fc.integer({ min: 0, max: 65535 }),
      timeout: fc.double({ min: 1e-9, max: 1e9, noNaN: true }),
      wire: fc.constantFrom("f16" as const, "f32" as const),
      verbose: fc.boolean(),
      shards: fc.array(
        fc.tuple(fc.domain(), fc.nat(65535)).map(([host, port]) => `${host}:${port}`),
      ),
      apiKey: fc.string({ minLength: 3 }),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(any, fc.string({ minLength: 1 }), (values, name) => {
      const parsed = schema.parse({ ...values, name });
      const { argv, env } = toArguments(schema, parsed);
      assert.deepEqual(parseConfig(schema, argv, env), { kind: "config", config: parsed });
    }),
  );
});

test("no command line makes the parser throw", () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.string(), fc.constantFrom("--name", "--verbose"))), (argv) => {
      parseConfig(schema, argv, {});
    }),
  );
});

test("every flag of both services has a description, and the defaults are a config", () => {
  for (const service of [routerConfigSchema, expertConfigSchema]) {
    for (const [key, field] of Object.entries(service.shape)) {
      const description: unknown = z.globalRegistry.get(field)?.description;
      assert.equal(typeof description, "string", key);
    }
    assert.equal(parseConfig(service, [], {}).kind, "config");
  }
});

test("every flag of up, router and shard that is no switch says what stands without it", () => {
  for (const schemaOf of [upConfigSchema, routerConfigSchema, expertConfigSchema]) {
    for (const { flag, type, defaultText, description } of describeFlags(schemaOf)) {
      const says = type === "boolean" || defaultText !== undefined || / none: /.test(description);
      assert.ok(says, flag);
    }
  }
});

test("settings that the process could not keep are refused", () => {
  const problems = (...argv: string[]) => {
    const parsed = parseConfig(routerConfigSchema, argv, {});
    return parsed.kind === "invalid" ? parsed.problems : [];
  };
  // A timer takes 2^31 - 1 ms at most, and runs at once where it is asked for more.
  assert.deepEqual(problems("--dispatch-timeout=2147484", "--request-timeout=2147484"), [
    '--dispatch-timeout is "2147484", expected a number above 0 to 3600 (s)',
    '--request-timeout is "2147484", expected a number above 0 to 86400 (s)',
  ]);
  // A device takes 65535 workgroups per dimension.
  assert.equal(problems("--max-num-batched-tokens=65536").length, 1);
  assert.deepEqual(problems("--max-num-batched-tokens=65535"), []);
  assert.equal(problems("--max-queue=0").length, 1);
  for (const port of ["0", "65536", "99999", "x"]) {
    assert.equal(problems(`--shards=10.0.0.1:${port}`).length, 1, port);
  }
  assert.deepEqual(problems("--shards=10.0.0.1:65535,[::1]:1,shard-0.shards:50061"), []);
  assert.deepEqual(problems("--shards=a:1,b:2,a:1,b:2,a:1"), [
    "--shards: a:1 and b:2 are listed more than once",
  ]);
});

test("a shard that nobody could reach or call by its rank is refused", () => {
  const refused = ["--advertise=foo:99999", "--advertise=::1:50061", "--advertise=foo:0"];
  for (const flag of [...refused, "--rank=65534", "--rank=65535", "--drain-timeout=2147484"]) {
    assert.equal(parseConfig(expertConfigSchema, [flag], {}).kind, "invalid", flag);
  }
  for (const flag of ["--advertise=foo:65535", "--advertise=[::1]:50061", "--rank=65533"]) {
    assert.equal(parseConfig(expertConfigSchema, [flag], {}).kind, "config", flag);
  }
});

test("a variable means the same to a router and to a shard that it is passed on to", () => {
  const shared = Object.keys(expertConfigSchema.shape).filter(
    (key) => key in routerConfigSchema.shape,
  );
  for (const key of shared) {
    const [router, shard] = [routerConfigSchema, expertConfigSchema].map(
      ({ shape }) => z.globalRegistry.get(shape[key as keyof typeof shape])?.description,
    );
    assert.equal(router, shard, key);
  }
  const queue = parseConfig(expertConfigSchema, [], { SWITCHYARD_MAX_QUEUE: "1" });
  assert.equal(queue.kind === "config" && queue.config.maxDispatches, 256);
});

test("a process with bad settings exits with 2 and lists them on stderr", () => {
  const script =
    'import { loadConfig } from "./core/platform/config.ts";' +
    'import { routerAbout, routerConfigSchema } from "./router-service/config.ts";' +
    "loadConfig(routerConfigSchema, routerAbout); console.log('went on');";
  const child = spawnSync(
    process.execPath,
    [
      "--input-type=module",
      "--eval",
      script,
      "script",
      "--wire=f64",
      "--max-queue",
      "-1",
      "--shards=x",
    ],
    { encoding: "utf8", cwd: `${import.meta.dirname}/../../..` },
  );
  assert.equal(child.status, 2);
  assert.equal(child.stdout, "");
  assert.equal(
    child.stderr,
    "switchyard router: 3 problems with the configuration\n" +
      '  --shards is "x", expected a list like 10.0.0.1:50061,10.0.0.2:50061, ports from 1 to 65535\n' +
      '  --wire is "f64", expected one of f16, f32, int8\n' +
      '  --max-queue is "-1", expected an integer from 1 up (requests)\n' +
      "See switchyard router --help.\n",
  );
});

test("an IPv6 address stands in brackets before its port", () => {
  assert.equal(hostPort("::1", 50061), "[::1]:50061");
  assert.equal(hostPort("127.0.0.1", 50061), "127.0.0.1:50061");
  assert.equal(hostPort("shard-0.shards", 50061), "shard-0.shards:50061");
});
