/** What `switchyard inspect` prints. */

import { bytesText, countText } from "../core/amounts.ts";
import type { AttentionConfig, ModelConfig } from "../core/model/config.ts";
import { layerCounts, MODEL_PARTS, modelSize, parameterCounts } from "../core/model/footprint.ts";
import type { LargeBuffer } from "../router-service/engine/router-memory.ts";
import type { RunnerLimits } from "../router-service/engine/runner-limits.ts";
import type { InspectPlan, PlannedProcess } from "./inspect-plan.ts";

/** What was looked at, and with which settings. */
export interface InspectSubject {
  readonly name: string;
  readonly config: ModelConfig;
  /** Bytes of the weight files by dtype; undefined where there are no weights. */
  readonly files:
    | { readonly count: number; readonly bytes: ReadonlyMap<string, number> }
    | undefined;
  /** How weights and experts are kept. */
  readonly weights: string;
  readonly experts: string;
  /** A `switchyard.json` keeps some experts otherwise. */
  readonly overlaid: boolean;
  readonly limits: RunnerLimits;
  readonly memoryBytes: number;
  /** Where the memory was declared. */
  readonly memoryFrom: string;
  /** Largest binding of the adapter; Infinity on the CPU. */
  readonly bindingBytes: number;
  readonly plan: InspectPlan;
}

/** The report as text. */
export function formatInspection(subject: InspectSubject): string {
  return [...modelLines(subject), "", ...routerLines(subject), "", ...shardLines(subject), ""].join(
    "\n",
  );
}

/** The report as JSON; all sizes in bytes. */
export function inspectionJson(subject: InspectSubject): object {
  const { config, files, plan, memoryBytes, bindingBytes, limits } = subject;
  const size = modelSize(config);
  const parameters = parameterCounts(config, size);
  return {
    model: {
      name: subject.name,
      family: config.modelType,
      layers: layerCounts(config),
      attention: config.attention,
      experts: {
        perLayer: config.numExperts,
        perToken: config.numExpertsPerToken,
        intermediateSize: config.expertIntermediateSize,
        shared: config.sharedExpert,
      },
      maxPositions: config.maxPositions,
      vocabSize: config.vocabSize,
      hiddenSize: config.hiddenSize,
      parameters: {
        ...parameters,
        parts: Object.fromEntries(
          MODEL_PARTS.map((part) => [part, size[part].matrices + size[part].vectors]),
        ),
      },
      files: files && { count: files.count, bytes: Object.fromEntries(files.bytes) },
    },
    settings: {
      weights: subject.weights,
      experts: subject.experts,
      overlaid: subject.overlaid,
      maxModelLen: limits.maxModelLen,
      contextLimitedBy: limits.contextLimitedBy ?? null,
      memoryBytes,
      maxBindingBytes: Number.isFinite(bindingBytes) ? bindingBytes : null,
    },
    ...plan,
    shardsNeeded: plan.shardsNeeded ?? null,
  };
}

function modelLines({ name, config, files }: InspectSubject): string[] {
  const { total, active } = parameterCounts(config, modelSize(config));
  const { moe, dense } = layerCounts(config);
  const kinds = [dense && `${dense} dense`, moe && `${moe} MoE`].filter(Boolean).join(", ");
  return [
    `${name}: ${config.modelType}, ${billions(total)} parameters, ${billions(active)} read per token`,
    row("layers", `${config.numLayers}: ${kinds}; hidden size ${config.hiddenSize}`),
    row("attention", attentionText(config.attention)),
    row("positions", `${config.maxPositions}; ${ropeText(config)}`),
    row("experts", expertsText(config)),
    ...(dense > 0 ? [row("dense layers", `width ${config.denseIntermediateSize}`)] : []),
    row(
      "vocabulary",
      `${config.vocabSize}${config.tieWordEmbeddings ? "; the output head is the embedding" : ""}`,
    ),
    row("files", files === undefined ? "no weights here: sizes by config.json" : filesText(files)),
  ];
}

function attentionText(attention: AttentionConfig): string {
  if (attention.kind === "latent") {
    const { numHeads, nopeDim, ropeDim, valueDim, kvLoraRank, qLoraRank } = attention;
    const query = qLoraRank === undefined ? "" : `, query rank ${qLoraRank}`;
    return `latent: ${numHeads} heads of ${nopeDim} + ${ropeDim} (values ${valueDim}) over a vector of ${kvLoraRank}${query}`;
  }
  const { numHeads, numKvHeads, headDim, windows } = attention;
  const sizes = [...new Set(windows.filter((window) => window !== undefined))];
  const extras = [
    attention.qkvBias && "biases",
    attention.qkNorm !== "none" && "norms of q and k",
    attention.sinks && "sinks",
    attention.clipQkv !== undefined && `q, k and v within ±${attention.clipQkv}`,
    sizes.length > 0 &&
      `windows of ${sizes.join(", ")} in ${windows.filter((window) => window !== undefined).length} layers`,
  ].filter(Boolean);
  return [`${numHeads} heads of ${headDim}, ${numKvHeads} for keys and values`, ...extras].join(
    "; ",
  );
}

function ropeText({ rope }: ModelConfig): string {
  const yarn = rope.yarn
    ? `, YaRN ×${rope.yarn.factor} from ${rope.yarn.originalPositions} positions`
    : "";
  return `RoPE over ${rope.dim} columns, θ ${rope.theta}${yarn}`;
}

function expertsText(config: ModelConfig): string {
  const { score, groups } = config.gate;
  const chosen = groups
    ? `${score}, from ${groups.topGroups} of ${groups.numGroups} groups`
    : score;
  const shared = config.sharedExpert
    ? `; shared ${config.sharedExpert.intermediateSize}${config.sharedExpert.gated ? ", gated" : ""}`
    : "";
  return `${config.numExperts} per layer of width ${config.expertIntermediateSize}, ${config.numExpertsPerToken} per token (${chosen})${shared}`;
}

function filesText({ count, bytes }: NonNullable<InspectSubject["files"]>): string {
  const dtypes = [...bytes].sort(([, a], [, b]) => b - a);
  const parts = dtypes.map(([dtype, size]) => `${dtype} ${bytesText(size)}`).join(", ");
  return `${parts} in ${count} file${count === 1 ? "" : "s"}`;
}

function routerLines(subject: InspectSubject): string[] {
  const { config, plan, weights, limits } = subject;
  const { maxModelLen, contextLimitedBy } = limits;
  const context =
    contextLimitedBy === undefined
      ? `longest context ${maxModelLen}`
      : `longest context ${maxModelLen} of ${config.maxPositions}, limited by ${contextLimitedBy}`;
  const { memory, experts } = plan.router;
  const tokens = memory.kvCache / memory.kvPerToken;
  const lines: [string, number, string?][] = [
    ["embedding", memory.weights.embedding],
    ["output head", memory.weights.lmHead, config.tieWordEmbeddings ? "the embedding" : undefined],
    ["attention", memory.weights.attention],
    ["gates", memory.weights.gates],
    ["shared", memory.weights.shared],
    ["dense", memory.weights.dense],
    ["rotary table", memory.rope],
    [
      "KV cache",
      memory.kvCache,
      `${bytesText(memory.kvPerToken)} per token, ${tokens} tokens; ${context}`,
    ],
    ["buffers", memory.buffers + (experts?.buffers ?? 0)],
  ];
  if (experts) lines.push(["experts", experts.residentBytes, formatsText(subject)]);
  const { leftForExperts: left = 0 } = plan.router;
  return [
    `${plan.shards.length === 0 ? "One process" : "Router"}, weights in ${weights}`,
    ...lines.filter(([, bytes, note]) => bytes > 0 || note !== undefined).map(sizeRow),
    sizeRow(["total", plan.router.total, fitText(plan.router, subject)]),
    ...(left > 0
      ? [sizeRow(["left", left, "for routed experts of its own, with --router-memory-limit"])]
      : []),
  ];
}

function shardLines(subject: InspectSubject): string[] {
  const { config, plan } = subject;
  const experts = formatsText(subject);
  const { shards, shardsNeeded } = plan;
  const verdict =
    shardsNeeded === undefined
      ? `no number of shards would do: ${tooMuch(subject)}`
      : `${countText(shardsNeeded, "shard")} of ${bytesText(subject.memoryBytes)} would hold all experts in ${experts}`;
  if (shards.length === 0) return [verdict];
  const [{ buffers }] = shards;
  const reserve = Math.max(...shards.map((shard) => shard.reserve));
  const moves = reserve > 0 ? `, ${bytesText(reserve)} free for moves` : "";
  return [
    `${countText(shards.length, "shard")}, experts in ${experts}, ${bytesText(buffers)} of buffers${moves} each`,
    ...shards.map((shard) =>
      sizeRow([
        `rank ${shard.rank}`,
        shard.total,
        `${shard.expertsPerLayer} of ${config.numExperts} experts of each layer: ${bytesText(shard.residentBytes)} resident; ${fitText(shard, subject)}`,
      ]),
    ),
    verdict,
  ];
}

/** Formats of experts, as far as one word says them. */
function formatsText({ experts, overlaid }: InspectSubject): string {
  return overlaid ? `${experts}, others by switchyard.json` : experts;
}

/** Why not even one expert of every layer fits a shard. */
function tooMuch({ plan, memoryBytes, bindingBytes }: InspectSubject): string {
  return plan.expertsTooLarge.length > 0
    ? largeText(plan.expertsTooLarge, bindingBytes)
    : `one expert of every layer takes more than ${bytesText(memoryBytes)}`;
}

function fitText({ total, tooLarge, fits }: PlannedProcess, subject: InspectSubject): string {
  const { memoryBytes, memoryFrom, bindingBytes } = subject;
  if (fits) return `fits in ${bytesText(memoryBytes)} (${memoryFrom})`;
  const reasons = [
    total > memoryBytes &&
      `${bytesText(total - memoryBytes)} more than ${bytesText(memoryBytes)} (${memoryFrom})`,
    tooLarge.length > 0 && largeText(tooLarge, bindingBytes),
  ].filter(Boolean);
  return `does not fit: ${reasons.join("; ")}`;
}

/** The first of the buffers that no binding takes, and how many more there are. */
function largeText([first, ...others]: readonly LargeBuffer[], bindingBytes: number): string {
  const more = others.length > 0 ? ` (and ${others.length} more buffers)` : "";
  return `${first.label} takes ${bytesText(first.bytes)}${more}, a binding of the adapter at most ${bytesText(bindingBytes)}`;
}

function row(name: string, text: string): string {
  return `  ${name.padEnd(14)}${text}`;
}

function sizeRow([name, bytes, note]: readonly [string, number, string?]): string {
  const size = bytesText(bytes).padStart(10);
  return `  ${name.padEnd(14)}${size}${note === undefined ? "" : `  ${note}`}`;
}

function billions(parameters: number): string {
  return parameters >= 1e9
    ? `${(parameters / 1e9).toFixed(2)} B`
    : `${(parameters / 1e6).toFixed(2)} M`;
}
