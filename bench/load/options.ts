/** Flags of the load generator: key, type, unit, default and description in one place. */

import { z } from "zod";

import { serviceOptions } from "../../core/platform/service-options.ts";
import type { ServiceLevels } from "./statistics.ts";

const count = z.int().min(1);

/** Schema of a load run; flags and `--help` come from it. */
export const loadSchema = z.object({
  url: z
    .url()
    .default("http://127.0.0.1:8000")
    .meta({ description: "Server: scheme, host and port", placeholder: "URL" }),
  endpoint: z
    .enum(["completions", "chat"])
    .default("completions")
    .meta({ description: "Which endpoint is asked" }),
  servedModelName: z.string().min(1).optional().meta({
    description: "Name that the server knows the model by",
    placeholder: "NAME",
    defaultText: "the server's first",
  }),
  apiKey: z.string().min(1).optional().meta({
    description: "Key that is sent as a bearer token",
    placeholder: "KEY",
    defaultText: "none",
    secret: true,
  }),
  dataset: z.enum(["random", "demo-texts"]).default("random").meta({
    description: "Prompts: random token ids, or slices of the model directory's eval/*.txt",
  }),
  model: serviceOptions.model,
  inputLen: count.default(128).meta({ description: "Tokens of a prompt", placeholder: "N" }),
  outputLen: count
    .default(64)
    .meta({ description: "Tokens generated at most (max_tokens)", placeholder: "N" }),
  numPrompts: count.default(32).meta({ description: "Measured requests", placeholder: "N" }),
  numWarmups: z
    .int()
    .min(0)
    .default(1)
    .meta({ description: "Requests sent before, one after another", placeholder: "N" }),
  maxConcurrency: count.optional().meta({
    description: "Requests under way at most",
    placeholder: "N",
    defaultText: "no limit",
  }),
  requestRate: z.number().positive().optional().meta({
    description: "Arrivals per second",
    placeholder: "RATE",
    defaultText: "closed loop: as soon as the concurrency allows",
  }),
  burstiness: z.number().positive().default(1).meta({
    description: "Shape of the gamma-distributed gaps: 1 is Poisson, less is burstier",
    placeholder: "SHAPE",
  }),
  ignoreEos: z.boolean().default(false).meta({ description: "Always generate OUTPUT-LEN tokens" }),
  temperature: z
    .number()
    .min(0)
    .default(0)
    .meta({ description: "Sampling temperature; 0 is greedy", placeholder: "T" }),
  seed: z
    .int()
    .min(0)
    .default(0)
    .meta({ description: "Seed of prompts and arrivals", placeholder: "N" }),
  goodput: z
    .array(z.string().regex(/^(ttft|tpot|e2el):\d+(\.\d+)?$/))
    .default([])
    .meta({
      description: "Limits in milliseconds that a good request keeps",
      placeholder: "ttft:MS,tpot:MS,e2el:MS",
      defaultText: "none: goodput is not counted",
      expectation: "a list like ttft:200,tpot:50,e2el:2000",
    }),
  requestTimeout: z.number().positive().max(86_400).default(120).meta({
    description: "Deadline of one request",
    unit: "s",
    placeholder: "SECONDS",
  }),
  saveResult: z.string().min(1).optional().meta({
    description: "JSON file with the field names of vllm bench serve",
    placeholder: "FILE",
    defaultText: "none is written",
  }),
});

/** Settings of a load run, parsed and frozen. */
export type LoadOptions = Readonly<z.output<typeof loadSchema>>;

/** First lines of the load generator's `--help`. */
export const loadAbout = {
  command: "switchyard bench",
  summary: "Sends load over the OpenAI HTTP API and prints TTFT, TPOT, ITL, E2EL and throughput.",
};

/** The arguments with levels that follow `--goodput` one by one, as vllm bench serve takes them, joined to one value. */
export function joinGoodput(argv: readonly string[]): string[] {
  const joined: string[] = [];
  for (const argument of argv) {
    const last = joined.length - 1;
    const isFurtherLevel = /^(ttft|tpot|e2el):/.test(argument) && joined[last - 1] === "--goodput";
    if (isFurtherLevel) joined[last] += `,${argument}`;
    else joined.push(argument);
  }
  return joined;
}

/** The limits of `--goodput`, as in ["ttft:200", "tpot:50"]; undefined where none is given. */
export function serviceLevels(goodput: readonly string[]): ServiceLevels | undefined {
  if (goodput.length === 0) return undefined;
  return Object.fromEntries(
    goodput.map((entry) => {
      const [name, limit] = entry.split(":");
      return [name, Number(limit)];
    }),
  );
}
