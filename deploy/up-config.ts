/** Settings of `switchyard up`: those of a router, with a number of shards instead of their addresses. */

import { z } from "zod";

import { expertConfigSchema } from "../expert-service/config.ts";
import { routerFields } from "../router-service/config.ts";

const {
  model,
  httpPort,
  grpcPort,
  redisUrl,
  device,
  wire,
  weights,
  expertsBits,
  expertsGroup,
  ...others
} = routerFields.omit({ shards: true, discover: true, minShards: true }).shape;

/** Schema of `switchyard up`; what concerns a router or a shard alone is passed on to it. */
export const upConfigSchema = z.object({
  model,
  shards: z.int().min(0).max(64).default(2).meta({
    description: "Expert shards to start; 0: one process that holds all experts itself",
    placeholder: "N",
  }),
  httpPort,
  grpcPort,
  redisUrl: redisUrl.meta({
    ...redisUrl.meta(),
    description:
      "Redis for the routing statistics, the placement and the shards' registration; none: a redis-server of its own, in memory",
  }),
  device,
  wire,
  weights,
  expertsBits,
  expertsGroup,
  memoryLimit: expertConfigSchema.shape.memoryLimit.meta({
    ...expertConfigSchema.shape.memoryLimit.meta(),
    description: "Device memory that the expert weights of one shard may take",
  }),
  startTimeout: z.number().positive().max(86_400).default(600).meta({
    description: "Longest wait until the cluster serves",
    unit: "s",
    placeholder: "SECONDS",
  }),
  ...others,
});

/** Settings of `switchyard up`, parsed and frozen. */
export type UpConfig = Readonly<z.output<typeof upConfigSchema>>;

/** First lines of `switchyard up --help`. */
export const upAbout = {
  command: "switchyard up",
  summary:
    "Starts a cluster on this machine: a router, expert shards and a redis-server; Ctrl-C stops it.",
  notes:
    "npm start -- [flags] is the same. Traces go where the standard OTEL_* variables say; without them there are none.",
};
