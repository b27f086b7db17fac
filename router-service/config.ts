/** Every setting of a router: key, type, unit, default and description in one place. */

import { z } from "zod";

import { POLICIES } from "../core/placement/input.ts";
import { isHostPort, portOption, serviceOptions } from "../core/platform/service-options.ts";

/** Fields of a router's settings, each for itself. */
export const routerFields = z.object({
  model: serviceOptions.model,
  servedModelName: z.string().min(1).optional().meta({
    description: "Name of the model for clients",
    placeholder: "NAME",
    defaultText: "the model directory's name",
  }),
  host: serviceOptions.host,
  httpPort: portOption(8000, "Port of the OpenAI-compatible HTTP server"),
  grpcPort: portOption(50051, "Port of the gRPC server"),
  apiKey: z.string().min(1).optional().meta({
    description: "Key that clients must send as a bearer token",
    placeholder: "KEY",
    defaultText: "none: whoever reaches the port is answered",
    secret: true,
  }),
  shards: z.array(z.string().refine(isHostPort)).default([]).meta({
    description: "Addresses of the expert shards; none: the router holds all experts itself",
    placeholder: "HOST:PORT,…",
    expectation: "a list like 10.0.0.1:50061,10.0.0.2:50061, ports from 1 to 65535",
  }),
  shardsTimeout: z.number().min(0).max(86_400).default(10).meta({
    description:
      "How long the first placement waits for all of --shards once one can be used; then it goes without the others, if those that can have room for all experts",
    unit: "s",
    placeholder: "SECONDS",
  }),
  redisUrl: serviceOptions.redisUrl,
  discover: z.boolean().default(false).meta({
    description: "Find the expert shards that register in Redis, instead of --shards",
  }),
  minShards: z.int().min(1).max(65_535).default(1).meta({
    description: "Shards that the first placement waits for, with --discover",
    unit: "shards",
    placeholder: "N",
  }),
  minCopies: z.int().min(1).max(64).default(1).meta({
    description:
      "Copies of each expert at least, as far as the shards' memory goes; with 2, the loss of a shard moves nothing",
    unit: "copies",
    placeholder: "N",
  }),
  placementPolicy: z.enum(POLICIES).default("auto").meta({
    description:
      "How experts are placed: auto, by what steps are expected to take; to compare with: static, in turns over the shards, or eplb, as DeepSeek's EPLB does",
  }),
  planInterval: z.number().min(0).max(86_400).default(10).meta({
    description:
      "Time between two plans of where experts live; 0: they move only where a shard is lost or to leave",
    unit: "s",
    placeholder: "SECONDS",
  }),
  device: serviceOptions.device,
  adapter: serviceOptions.adapter,
  weights: serviceOptions.weights,
  tune: serviceOptions.tune,
  expertsBits: serviceOptions.expertsBits,
  expertsGroup: serviceOptions.expertsGroup,
  wire: z.enum(["f16", "f32", "int8"]).default("f16").meta({
    description: "Dtype of the hidden states sent to shards; int8 with a scale for each row",
  }),
  microBatches: z.enum(["auto", "1", "2"]).default("auto").meta({
    description:
      "Parts of a step that take turns, one computing while the other's rows are with the shards; auto: what steps are faster with",
  }),
  routerMemoryLimit: z.int().min(1).optional().meta({
    description:
      "Device memory that the router may take in all; what weights, KV cache and buffers leave goes to routed experts, but on a GPU one layer's part of it, half at most, that stays free for moves",
    unit: "bytes",
    placeholder: "BYTES",
    defaultText: "no limit, and routed experts only by --local-experts",
  }),
  localExperts: z.int().min(0).optional().meta({
    description:
      "Device memory of the router's own that routed experts may take beside those of the shards",
    unit: "bytes",
    placeholder: "BYTES",
    defaultText: "all that --router-memory-limit leaves; without that, none",
  }),
  dispatchTimeout: z.number().positive().max(3_600).default(2).meta({
    description: "Longest wait for a shard's answer before its rows are sent again",
    unit: "s",
    placeholder: "SECONDS",
  }),
  requestTimeout: z.number().positive().max(86_400).default(600).meta({
    description: "Longest life of a request, waiting included",
    unit: "s",
    placeholder: "SECONDS",
  }),
  maxNumSeqs: z.int().min(1).max(1024).default(32).meta({
    description: "Sequences of one step at most",
    placeholder: "N",
  }),
  maxNumBatchedTokens: z.int().min(1).max(65535).default(256).meta({
    description: "Tokens of one step at most, prefill chunks and decodes together",
    placeholder: "N",
  }),
  maxModelLen: z.int().min(1).optional().meta({
    description: "Tokens of prompt and completion together at most",
    unit: "tokens",
    placeholder: "N",
    defaultText: "the model's own limit, as far as the KV cache holds it",
  }),
  kvBlocks: z.int().min(1).optional().meta({
    description: "Blocks of 16 tokens in the KV cache",
    unit: "blocks",
    placeholder: "N",
    defaultText:
      "room for --max-num-seqs full sequences within 128 MiB, at least for one within 4 GiB; a layer's lie in one binding",
  }),
  maxQueue: z.int().min(1).default(256).meta({
    description: "Requests that may wait; one more is answered 429",
    unit: "requests",
    placeholder: "N",
  }),
  recordRouting: z.string().min(1).optional().meta({
    description:
      "New file for the experts that tokens choose, as switchyard plan --trace reads it; none: not recorded",
    placeholder: "FILE",
  }),
  recordTokens: z.int().min(1).max(100_000_000).default(65_536).meta({
    description: "Tokens after which --record-routing ends",
    unit: "tokens",
    placeholder: "N",
  }),
  logLevel: serviceOptions.logLevel,
});

/** Schema of a router's settings; flags, variables and `--help` come from it. */
export const routerConfigSchema = routerFields.superRefine((settings, context) => {
  const { discover, redisUrl, shards } = settings;
  const refuse = (message: string) => context.addIssue({ code: "custom", path: [], message });
  if (discover && redisUrl === undefined) {
    refuse("--discover needs --redis-url: shards are found by what they register there");
  }
  if (discover && shards.length > 0) refuse("--discover and --shards: shards are found or listed");
  const twice = new Set(shards.filter((address, i) => shards.indexOf(address) < i));
  if (twice.size > 0) {
    const are = twice.size === 1 ? "is" : "are";
    refuse(`--shards: ${[...twice].join(" and ")} ${are} listed more than once`);
  }
});

/** Settings of a router, parsed and frozen. */
export type RouterConfig = Readonly<z.output<typeof routerConfigSchema>>;

/** First lines of a router's `--help`. */
export const routerAbout = {
  command: "switchyard router",
  summary: "The front door of a cluster: text in, tokens out, over HTTP and gRPC.",
  notes: "Traces go where the standard OTEL_* variables say; without them there are none.",
};
