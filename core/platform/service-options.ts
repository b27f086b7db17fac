/** Config fields that both services have. */

import { join, relative } from "node:path";

import { z } from "zod";

import { EXPERT_BITS, EXPERT_GROUPS } from "../expert-formats.ts";

const DEMO_MODEL = join(import.meta.dirname, "../../models/demo-moe");

/** A TCP port; 0 lets the system choose a free one. */
export function portOption(defaultPort: number, description: string) {
  return z
    .int()
    .min(0)
    .max(65535)
    .default(defaultPort)
    .meta({ description: `${description}; 0 chooses a free one`, placeholder: "PORT" });
}

/** A host with a port as gRPC and URLs write it: an IPv6 address in brackets. */
export function hostPort(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Whether this is a host with a port that can be reached, an IPv6 address in brackets. */
export function isHostPort(text: string): boolean {
  const [, port = "0"] = /^(?:\[[0-9a-fA-F:.]+\]|[^:\s]+):(\d{1,5})$/.exec(text) ?? [];
  return Number(port) >= 1 && Number(port) <= 65535;
}

/** URL of a Redis; who uses it adds its description. */
export const redisUrl = z
  .string()
  .regex(/^rediss?:\/\/\S+$/)
  .meta({
    placeholder: "URL",
    expectation: "a URL like redis://127.0.0.1:6379",
    // It may hold a password.
    secret: true,
  });

/** What a router and a shard are both asked. */
export const serviceOptions = {
  model: z
    .string()
    .default(DEMO_MODEL)
    .meta({
      description:
        "Directory of the checkpoint: config.json, *.safetensors, tokenizer.json if it has one",
      placeholder: "DIR",
      defaultText: relative(join(import.meta.dirname, "../.."), DEMO_MODEL),
    }),
  host: z
    .string()
    .default("127.0.0.1")
    .meta({ description: "Address to listen on", placeholder: "ADDRESS" }),
  redisUrl: redisUrl.optional().meta({
    ...redisUrl.meta(),
    description:
      "Redis for the routing statistics, what routers of a model agree on, and the shards' registration; none: statistics and plans stay in memory, and only one router may use the shards",
  }),
  device: z.enum(["auto", "webgpu", "cpu"]).default("auto").meta({
    description: "What computes; auto: WebGPU where there is an adapter, else the CPU",
  }),
  adapter: z.string().optional().meta({
    description: "Part of the name of the GPU adapter to use",
    placeholder: "TEXT",
    defaultText: "the first one",
  }),
  weights: z.enum(["auto", "f16", "f32"]).default("auto").meta({
    description:
      "Dtype of weights in device memory; auto: f16 where every adapter of the cluster has it",
  }),
  tune: z.enum(["auto", "always", "never"]).default("auto").meta({
    description:
      "Whether kernels are chosen by measuring them at the first start, the choice kept in ~/.cache/switchyard; auto: on a real GPU",
  }),
  expertsBits: z.enum(EXPERT_BITS).default("auto").meta({
    description:
      "Bits of the weights of routed experts, where switchyard.json says nothing of them; auto: MXFP4 where the checkpoint has it, else as --weights",
  }),
  expertsGroup: z.enum(EXPERT_GROUPS).default("32").meta({
    description: "Columns that share a scale with --experts-bits 4",
  }),
  logLevel: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .meta({
      description: "Lowest level that is logged: trace, debug, info, warn, error, fatal or silent",
      placeholder: "LEVEL",
    }),
};
