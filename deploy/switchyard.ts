/** The command line `switchyard`: one subcommand per thing to run. */

import packageJson from "../package.json" with { type: "json" };
import { nearest } from "../core/platform/flags.ts";

/** A subcommand; it reads its own flags and ends the process by itself or sets the exit code. */
interface Subcommand {
  readonly summary: string;
  run(argv: string[]): Promise<void>;
}

const SUBCOMMANDS: Readonly<Record<string, Subcommand>> = {
  up: {
    summary: "a whole cluster on this machine: router, expert shards, redis-server",
    run: async (argv) => (await import("./local-cluster.ts")).runUp(argv),
  },
  router: {
    summary: "one router: the front door, HTTP and gRPC",
    run: () => runService("../router-service/main.ts"),
  },
  shard: {
    summary: "one expert shard: holds the experts that routers place on it",
    run: () => runService("../expert-service/main.ts"),
  },
  stats: {
    summary: "what the routing statistics in Redis say: which experts were used",
    run: async (argv) => {
      process.exitCode = await (await import("./stats-command.ts")).runStatsCommand(argv);
    },
  },
  placement: {
    summary: "where experts live and why, as a heat map of layers and shards",
    run: async (argv) => {
      process.exitCode = await (await import("./placement-command.ts")).runPlacementCommand(argv);
    },
  },
  plan: {
    summary: "where experts would live if things were otherwise; or replayed from a recorded trace",
    run: async (argv) => {
      process.exitCode = await (await import("./plan-command.ts")).runPlanCommand(argv);
    },
  },
  drain: {
    summary: "has a shard leave: its last copies get another home first",
    run: async (argv) => {
      process.exitCode = await (await import("./drain-command.ts")).runDrainCommand(argv);
    },
  },
  inspect: {
    summary: "what a model is, and what it will take per process",
    run: async (argv) => {
      process.exitCode = await (await import("./inspect-command.ts")).runInspectCommand(argv);
    },
  },
  bench: {
    summary: "a load generator: TTFT, TPOT, ITL, throughput, goodput",
    run: async (argv) => {
      process.exitCode = await (await import("../bench/serve.ts")).runBenchCommand(argv);
    },
  },
};

/** A service's main.ts reads its flags from process.argv, where they stand without a subcommand. */
async function runService(main: string): Promise<void> {
  process.argv.splice(2, 1);
  await import(main);
}

const [name, ...argv] = process.argv.slice(2);
const subcommand = Object.hasOwn(SUBCOMMANDS, name ?? "") ? SUBCOMMANDS[name] : undefined;

if (subcommand !== undefined) {
  await subcommand.run(argv);
} else if (name === "--version" || name === "-v") {
  process.stdout.write(`${packageJson.version}\n`);
} else if (name === undefined || name === "--help" || name === "-h" || name === "help") {
  process.stdout.write(usage());
  process.exitCode = name === undefined ? 2 : 0;
} else {
  const close = nearest(name, Object.keys(SUBCOMMANDS));
  const hint = close === undefined ? "" : `, "${close}" exists`;
  process.stderr.write(`switchyard: unknown subcommand "${name}"${hint}\n\n${usage()}`);
  process.exitCode = 2;
}

function usage(): string {
  const lines = Object.entries(SUBCOMMANDS).map(
    ([subcommandName, { summary }]) => `  ${subcommandName.padEnd(11)}${summary}\n`,
  );
  return (
    `Switchyard: ${packageJson.description}.\n\n` +
    `Usage: switchyard <subcommand> [flags]\n\n${lines.join("")}\n` +
    "switchyard <subcommand> --help lists its flags.\n"
  );
}
