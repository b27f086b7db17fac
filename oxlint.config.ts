/** Lint: oxlint's own rules, who may import whom, and one door per dependency. */

import { defineConfig, type OxlintOverride } from "oxlint";

/** Imports that are refused; exactly one of regex and group, as `no-restricted-imports` has them. */
interface Refusal {
  readonly regex?: string;
  readonly group?: string[];
  readonly message: string;
  readonly allowTypeImports?: boolean;
}

/** A dependency and the only places that import it, types aside; a trailing slash means a whole folder. */
interface Door {
  readonly packages: string;
  readonly places: readonly string[];
}

const DOORS: readonly Door[] = [
  { packages: "^webgpu$", places: ["core/gpu/device.ts"] },
  { packages: "^ioredis$", places: ["core/platform/redis.ts"] },
  {
    packages:
      "^@opentelemetry/(sdk|exporter|resources|core|otlp|instrumentation|context|propagator)",
    places: ["core/platform/telemetry.ts"],
  },
  { packages: "^pino$", places: ["core/platform/log.ts"] },
  { packages: "^cli-progress$", places: ["core/platform/progress.ts"] },
  { packages: "^prom-client$", places: ["core/platform/metrics.ts"] },
  { packages: "^(fastify$|@fastify/)", places: ["router-service/api/http-server.ts"] },
  {
    packages: "^(@grpc/|grpc-health-check$)",
    places: [
      "core/platform/grpc.ts",
      "expert-service/",
      "router-service/cluster/",
      "router-service/api/",
    ],
  },
  { packages: "^@huggingface/tokenizers$", places: ["core/model/tokenizer/tokenizer.ts"] },
  { packages: "^@huggingface/jinja$", places: ["core/model/tokenizer/chat-template.ts"] },
];

/** Whom a folder, or one file, never imports; holds for subfolders as well. */
interface Direction {
  readonly folder: string;
  readonly refuses: readonly Refusal[];
  /** Files of the folder that may, because they are its effectful half. */
  readonly except?: readonly string[];
}

const NOTHING_OUTSIDE: readonly Refusal[] = [
  { regex: "^[^.]", message: "pure: imports no package and nothing of Node" },
  {
    group: ["../**", "!../random.ts", "!../amounts.ts"],
    message: "pure: imports nothing from outside its folder but core/random.ts and core/amounts.ts",
  },
];

const DIRECTIONS: readonly Direction[] = [
  {
    folder: "core/",
    refuses: [
      never("core", ["router-service", "expert-service", "condense", "deploy", "bench", "test"]),
    ],
  },
  { folder: "core/placement/", refuses: NOTHING_OUTSIDE },
  { folder: "core/random.ts", refuses: NOTHING_OUTSIDE },
  { folder: "core/amounts.ts", refuses: NOTHING_OUTSIDE },
  {
    folder: "core/statistics/",
    refuses: NOTHING_OUTSIDE,
    except: [
      "core/statistics/load-feed.ts",
      "core/statistics/reader.ts",
      "core/statistics/store.ts",
    ],
  },
  {
    folder: "router-service/",
    refuses: [never("a service", ["expert-service", "condense", "deploy", "bench", "test"])],
  },
  {
    folder: "router-service/engine/",
    refuses: [
      {
        regex: "/(cluster|api)/",
        message: "the engine reaches experts by RunExperts and never sees cluster/ or api/",
      },
    ],
  },
  {
    folder: "router-service/cluster/",
    refuses: [
      {
        group: ["**/engine/**", "!**/engine/run-experts.ts", "!**/engine/errors.ts"],
        message: "cluster/ never sees a sequence: of the engine only run-experts.ts and errors.ts",
      },
      { regex: "/api/", message: "cluster/ never imports api/" },
    ],
  },
  {
    folder: "expert-service/",
    refuses: [never("a shard", ["router-service", "condense", "deploy", "bench", "test"])],
  },
  { folder: "deploy/", refuses: [never("deploy", ["test"])] },
  { folder: "bench/", refuses: [never("a bench", ["test"])] },
];

/** Folders that no door is closed to. */
const OPEN_FOLDERS: readonly string[] = ["bench/"];

function never(who: string, folders: readonly string[]): Refusal {
  return {
    regex: `^(\\.\\./)+(${folders.join("|")})/`,
    message: `${who} never imports ${folders.join(", ")}`,
  };
}

/** What a file or folder may not import: the directions of its folders, and every door that is not open to it. */
function refusals(place: string): Refusal[] {
  const directions = DIRECTIONS.filter(
    ({ folder, except }) => place.startsWith(folder) && except?.includes(place) !== true,
  ).flatMap(({ refuses }) => refuses);
  const closed = DOORS.filter(
    ({ places }) =>
      ![...places, ...OPEN_FOLDERS].some(
        (open) => place === open || (open.endsWith("/") && place.startsWith(open)),
      ),
  ).map(({ packages, places }) => ({
    regex: packages,
    message: `the one door to this package is ${places.join(", ")}`,
    allowTypeImports: true,
  }));
  return [...directions, ...closed];
}

/**
 * One override per folder and per file with an exception, short paths first: the last one that matches a file replaces
 * the others' list, so that each carries all that holds for it.
 */
function importOverrides(): OxlintOverride[] {
  const places = new Set([
    ...DIRECTIONS.map(({ folder }) => folder),
    ...DIRECTIONS.flatMap(({ except }) => except ?? []),
    ...DOORS.flatMap((door) => door.places),
  ]);
  return [...places]
    .toSorted((a, b) => a.length - b.length)
    .map((place) => ({
      files: [place.endsWith("/") ? `${place}**` : place],
      rules: { "no-restricted-imports": ["error", { patterns: refusals(place) }] },
    }));
}

export default defineConfig({
  plugins: ["typescript", "import", "unicorn", "oxc", "node", "promise"],
  categories: { correctness: "error", suspicious: "error", perf: "error" },
  options: { typeAware: true },
  env: { node: true, es2024: true },
  ignorePatterns: ["proto/gen/**", "models/**"],
  rules: {
    "max-lines": ["error", { max: 300, skipBlankLines: true, skipComments: true }],
    "import/no-cycle": "error",
    "import/no-default-export": "error",
    "node/no-process-env": "error",
    "typescript/no-floating-promises": [
      "error",
      {
        allowForKnownSafeCalls: [
          {
            from: "package",
            package: "node:test",
            name: ["test", "describe", "it", "suite", "before", "after", "beforeEach", "afterEach"],
          },
        ],
      },
    ],
    "typescript/no-misused-promises": "error",
    "typescript/no-explicit-any": "error",
    "no-await-in-loop": "off",
    "no-underscore-dangle": "off",
    "unicorn/no-array-sort": "off",
    "unicorn/no-array-reverse": "off",
    "unicorn/consistent-function-scoping": "off",
    "import/no-unassigned-import": "off",
    "import/no-named-as-default-member": "off",
    "typescript/no-unsafe-type-assertion": "off",
    "no-shadow": "off",
    "typescript/consistent-return": "off",
  },
  overrides: [
    ...importOverrides(),
    {
      // system-packages.ts runs before every start and has no time to load the config's zod.
      files: ["core/platform/config.ts", "deploy/system-packages.ts", "bench/**", "test/**"],
      rules: { "node/no-process-env": "off" },
    },
    { files: ["oxlint.config.ts"], rules: { "import/no-default-export": "off" } },
  ],
});
