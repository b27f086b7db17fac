import { runUndisturbed, type UndisturbedRun } from "../../bench/rig/load-driver.ts";
import { withoutTies } from "../support/routing-ties.ts";
import { describeKills, REQUESTS } from "../support/shard-kills.ts";
import { TINY_EXPERTS_BYTES } from "../support/tiny-experts.ts";

const SEED = 33;

/** More prompts than are sent: those whose experts tie are left out. */
const SIZES = { count: REQUESTS + 20, minLength: 8, maxLength: 24, maxTokens: 32 };

async function draw(url: string): Promise<UndisturbedRun> {
  const { prompts, longestGapMs } = await runUndisturbed(url, SEED, SIZES);
  return { prompts: (await withoutTies(prompts)).slice(0, REQUESTS), longestGapMs };
}

describeKills({
  name: "a cluster of 4 shards on WebGPU with two copies of every expert, answers of 32 tokens",
  copies: 2,
  cluster: {
    shards: 4,
    device: "webgpu",
    // A third of it stays free for moves: room for two copies on three of them.
    shardFlags: () => ["--memory-limit", `${TINY_EXPERTS_BYTES}`],
  },
  draw,
  patienceMs: 1000,
  phases: ["prefill", "decode", "move"],
});

describeKills({
  name: "a cluster of 3 shards on WebGPU with one copy of every expert at first, answers of 32 tokens",
  copies: 1,
  // The planner makes copies of its own accord, as it likes: those experts matter of which a shard has the only one.
  cluster: { shards: 3, device: "webgpu" },
  draw,
  patienceMs: 7000,
  phases: ["prefill", "decode", "move"],
});
