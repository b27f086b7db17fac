/** Plans for other shards, another load, other bounds than there are; pure. */

import { countText } from "../../../core/amounts.ts";
import type { Policy } from "../../../core/placement/input.ts";
import { LOCAL_RANK, rankName } from "../../../core/placement/placement.ts";
import { knownShard, type PlanFacts, type ShardFacts, usualSpeeds } from "./planner-input.ts";

/** A shard that is other than it is, or one that is not there. What is absent stays as it is, or counts as usual. */
export interface WhatIfShard {
  /** LOCAL_RANK: the routers' own devices, each of which is as supposed. */
  readonly rank: number;
  readonly memoryBytes?: number | undefined;
  readonly secondsPerPair?: number | undefined;
  readonly rttSeconds?: number | undefined;
  readonly bytesPerSecond?: number | undefined;
  readonly draining?: boolean | undefined;
  /** It is not there. */
  readonly absent?: boolean | undefined;
}

/** What is to be supposed; what is absent stays as it is. */
export interface WhatIf {
  readonly shards?: readonly WhatIfShard[] | undefined;
  /** Tokens of a step: the load is scaled to it. */
  readonly tokensPerStep?: number | undefined;
  /** Pairs per step of the experts of some layers, by layer [numExperts]; the others stay as forecast. */
  readonly load?: ReadonlyMap<number, readonly number[]> | undefined;
  /** Plan as if nothing were held. */
  readonly fromNothing?: boolean | undefined;
  readonly minCopies?: number | undefined;
  /** How experts are placed. */
  readonly policy?: Policy | undefined;
  /** Bytes that the plan may load beside what it must. */
  readonly moveBytes?: number | undefined;
  /** Steps that the placement is expected to stand. */
  readonly steps?: number | undefined;
}

/** What is supposed contradicts the model or itself. */
export class WhatIfError extends Error {
  override readonly name = "WhatIfError";
  /** Field at fault, as the API has it. */
  readonly param: string;
  constructor(param: string, message: string) {
    super(`${param}: ${message}`);
    this.param = param;
  }
}

/** The facts as they are supposed to be. Throws WhatIfError. */
export function suppose(facts: PlanFacts, layers: readonly number[], what: WhatIf): PlanFacts {
  const { current, steps: seen, ...others } = facts;
  const { tokensPerStep, fromNothing, moveBytes, steps, minCopies } = what;
  const { numExperts, numExpertsPerToken: topK } = facts.config;
  const load = supposedLoad(facts, layers, what);
  if (tokensPerStep !== undefined) scale(load, numExperts, topK * tokensPerStep);
  return {
    ...others,
    shards: supposedShards(facts.shards, what.shards ?? []),
    expected: { load, deviation: facts.expected.deviation },
    // Steps that were seen are none of a load that is supposed.
    ...(seen && what.load === undefined && tokensPerStep === undefined && { steps: seen }),
    ...(current && fromNothing !== true && { current }),
    moves: {
      bytes: moveBytes ?? facts.moves.bytes,
      steps: steps ?? facts.moves.steps,
    },
    minCopies: minCopies ?? facts.minCopies,
    ...(what.policy && { policy: what.policy }),
  };
}

function supposedShards(
  shards: readonly ShardFacts[],
  changes: readonly WhatIfShard[],
): ShardFacts[] {
  // As they are: what is supposed of one says nothing of others that were not measured.
  const usual = usualSpeeds(shards);
  const byRank = new Map<number, ShardFacts>(
    shards.map((shard) => [shard.rank, knownShard(shard, usual)]),
  );
  const seen = new Set<number>();
  for (const [index, change] of changes.entries()) {
    const { rank, absent, ...values } = change;
    const fault = (field: string, text: string) =>
      new WhatIfError(`shards[${index}].${field}`, text);
    const [isLocal, name] = [rank === LOCAL_RANK, rankName(rank)];
    if (seen.has(rank)) throw fault("rank", `${name} is there twice`);
    seen.add(rank);
    if (isLocal && values.bytesPerSecond !== undefined) {
      throw fault("bytes_per_second", "rank local has no link");
    }
    const before = byRank.get(rank);
    if (absent === true) {
      if (Object.values(values).some((value) => value !== undefined)) {
        throw fault("absent", `rank ${name} can not be gone and otherwise than it is`);
      }
      if (!byRank.delete(rank)) {
        const there = shards.map((shard) => rankName(shard.rank)).join(", ") || "none";
        throw fault("rank", `there is no rank ${name}, there are ${there}`);
      }
      continue;
    }
    const memoryBytes = values.memoryBytes ?? before?.memoryBytes;
    if (memoryBytes === undefined) {
      throw fault("memory_bytes", `is missing, there is no rank ${name} whose memory is known`);
    }
    const speeds = before ?? usual;
    byRank.set(rank, {
      rank,
      memoryBytes,
      draining: values.draining ?? before?.draining ?? false,
      secondsPerPair: values.secondsPerPair ?? speeds.secondsPerPair,
      // To a router's own device there is no way.
      rttSeconds: values.rttSeconds ?? (isLocal && !before ? 0 : speeds.rttSeconds),
      bytesPerSecond: isLocal ? Infinity : (values.bytesPerSecond ?? speeds.bytesPerSecond),
      loadBytesPerSecond: speeds.loadBytesPerSecond,
      spread: before?.spread ?? 0,
      ...(before?.formats && { formats: before.formats }),
      ...(before?.isEmpty === true && { isEmpty: true }),
    });
  }
  return [...byRank.values()].sort((a, b) => a.rank - b.rank);
}

function supposedLoad(
  { expected, config: { numExperts } }: PlanFacts,
  layers: readonly number[],
  { load }: WhatIf,
): Float64Array {
  const supposed = expected.load.slice();
  for (const [layer, pairs] of load ?? []) {
    const index = layers.indexOf(layer);
    if (index < 0) {
      throw new WhatIfError(`load.${layer}`, `is not an MoE layer, there are ${layers.join(", ")}`);
    }
    if (pairs.length !== numExperts) {
      throw new WhatIfError(
        `load.${layer}`,
        `${countText(pairs.length, "value")}, the layer has ${countText(numExperts, "expert")}`,
      );
    }
    supposed.set(pairs, index * numExperts);
  }
  return supposed;
}

/** Scales each layer that has load to `pairs` in all. */
function scale(load: Float64Array, numExperts: number, pairs: number): void {
  for (let from = 0; from < load.length; from += numExperts) {
    const layer = load.subarray(from, from + numExperts);
    const sum = layer.reduce((total, one) => total + one, 0);
    if (sum > 0) for (let i = 0; i < numExperts; i++) layer[i] *= pairs / sum;
  }
}
