/** What placing experts by forecast brings where tasks and shards are uneven: `npm run bench -- skewed`. */

import { z } from "zod";

import { readModelConfig } from "../core/model/load-config.ts";
import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { expertBytes } from "../core/weights.ts";
import { waitForConvergence } from "./rig/control-api.ts";
import { ElasticCluster } from "./rig/elastic-cluster.ts";
import {
  PolicyMeter,
  policyTable,
  readCounters,
  type PolicyFigures,
} from "./skewed/policy-figures.ts";
import { readTasks, runTaskLoad, type TaskPrompts } from "./skewed/task-load.ts";

/** Ways to place experts that are compared, ours last. */
const POLICIES = ["static", "eplb", "auto"] as const;

const schema = z.object({
  model: serviceOptions.model,
  micros: z.array(z.string().regex(/^\d+$/)).default(["500", "500", "1000", "2000"]).meta({
    description: "Microseconds that each shard takes for one expert of a row",
    placeholder: "N,…",
    expectation: "a list like 500,500,1000,2000",
  }),
  redundancy: z.number().min(0).default(0.25).meta({
    description: "Room for copies beyond the first, as a share of all experts",
    placeholder: "X",
  }),
  secondsPerTask: z.number().positive().default(15).meta({
    description: "Time of each task",
    unit: "s",
    placeholder: "SECONDS",
  }),
  rounds: z.int().min(1).default(1).meta({
    description: "Times that all tasks take turns",
    placeholder: "N",
  }),
  planInterval: z.number().positive().default(3).meta({
    description: "Time between two plans",
    unit: "s",
    placeholder: "SECONDS",
  }),
  streams: z.int().min(1).default(16).meta({ description: "Requests at a time", placeholder: "N" }),
  promptLen: z.int().min(1).default(16).meta({
    description: "Tokens of a prompt",
    placeholder: "N",
  }),
  outputLen: z.int().min(2).default(32).meta({
    description: "Tokens of an answer",
    placeholder: "N",
  }),
});

type Settings = Readonly<z.output<typeof schema>>;

const about = {
  command: "npm run bench -- skewed",
  summary:
    "Throughput and time per token with static, EPLB-style and our placement on shards of unequal speed, one task at a time.",
};

/** Tasks in their order, as the demo model's held-out texts are named. */
const TASKS = ["maths", "python", "books", "facts"];

/** Prompts of each task. */
const PROMPTS_PER_TASK = 128;

/** Longest wait for a placement to stand before the load begins, milliseconds. */
const CONVERGE_MS = 60_000;

/** Runs all policies one after the other and prints a table; the exit status: 1 where a request failed. */
export async function runSkewedCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const { model, promptLen } = settings;
  const tasks = await readTasks(model, TASKS, PROMPTS_PER_TASK, promptLen, 51);
  const figures: PolicyFigures[] = [];
  for (const policy of POLICIES) figures.push(await measure(policy, settings, tasks));
  console.log(policyTable(figures));
  return figures.every(({ failed }) => failed === 0) ? 0 : 1;
}

async function measure(
  policy: string,
  settings: Settings,
  tasks: readonly TaskPrompts[],
): Promise<PolicyFigures> {
  const { model, micros, redundancy } = settings;
  const config = await readModelConfig(model);
  const expert = expertBytes(config, "f32");
  const numMoeLayers = config.layers.filter((kind) => kind === "moe").length;
  // Every shard has room for the same number of experts of each layer.
  const slots = Math.ceil((config.numExperts * (1 + redundancy)) / micros.length);
  const cluster = await ElasticCluster.start({
    model,
    shards: micros.length,
    redis: true,
    shardScript: "bench/throttled-shard.ts",
    shardFlags: (rank) =>
      `--micros-per-pair ${micros[rank]} --memory-limit ${slots * numMoeLayers * expert}`.split(
        " ",
      ),
    routerFlags:
      `--placement-policy ${policy} --plan-interval ${settings.planInterval} --micro-batches 1`.split(
        " ",
      ),
  });
  try {
    const [{ url }] = cluster.routers();
    await waitForConvergence(cluster, CONVERGE_MS);
    const before = await readCounters(url);
    const meter = new PolicyMeter(url, expert);
    const records = await runTaskLoad({
      url,
      model: model.split("/").at(-1) ?? model,
      tasks,
      secondsPerTask: settings.secondsPerTask,
      rounds: settings.rounds,
      concurrency: settings.streams,
      outputTokens: settings.outputLen,
    });
    return await meter.figures(policy, records, before);
  } finally {
    await cluster.close();
  }
}
