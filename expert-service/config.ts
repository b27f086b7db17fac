/** Every setting of an expert shard: key, type, unit, default and description in one place. */

import { z } from "zod";

import { MAX_SHARD_RANK } from "../core/placement/placement.ts";
import { isHostPort, portOption, serviceOptions } from "../core/platform/service-options.ts";

/** Schema of a shard's settings; flags, variables and `--help` come from it. */
export const expertConfigSchema = z.object({
  model: serviceOptions.model,
  rank: z.int().min(0).max(MAX_SHARD_RANK).default(0).meta({
    description: "Number of this shard, unique in its cluster",
    placeholder: "N",
  }),
  host: serviceOptions.host,
  port: portOption(50061, "Port of the gRPC server that routers connect to"),
  device: serviceOptions.device,
  adapter: serviceOptions.adapter,
  weights: serviceOptions.weights,
  tune: serviceOptions.tune,
  expertsBits: serviceOptions.expertsBits,
  expertsGroup: serviceOptions.expertsGroup,
  memoryLimit: z.int().min(1).optional().meta({
    description:
      "Device memory that expert weights may take; on a GPU one layer's part of it, half at most, stays free for moves",
    unit: "bytes",
    placeholder: "BYTES",
    defaultText: "the largest buffer that the adapter takes; half of the free memory on the CPU",
  }),
  maxDispatches: z.int().min(1).default(256).meta({
    description: "Dispatches that may wait; one more is answered with an error",
    unit: "dispatches",
    placeholder: "N",
  }),
  redisUrl: serviceOptions.redisUrl,
  advertise: z.string().refine(isHostPort).optional().meta({
    description: "Where routers and other shards reach this one",
    placeholder: "HOST:PORT",
    expectation: "a host and a port from 1 to 65535, like 10.0.0.7:50061",
    defaultText: "its own host and port",
  }),
  hostCache: z.int().min(0).default(0).meta({
    description: "Host memory for experts that leave the device, so that they are back sooner",
    unit: "bytes",
    placeholder: "BYTES",
  }),
  drainTimeout: z.number().min(0).max(86_400).default(30).meta({
    description:
      "How long a first SIGTERM or SIGINT waits for routers to take everything off this shard, which serves on; also where no other has room, as one may still join; a second one ends it at once",
    unit: "s",
    placeholder: "SECONDS",
  }),
  logLevel: serviceOptions.logLevel,
});

/** Settings of an expert shard, parsed and frozen. */
export type ExpertConfig = Readonly<z.output<typeof expertConfigSchema>>;

/** First lines of a shard's `--help`. */
export const expertAbout = {
  command: "switchyard shard",
  summary: "One expert shard: holds the experts that routers place on it, on its own device.",
  notes: "Traces go where the standard OTEL_* variables say; without them there are none.",
};
