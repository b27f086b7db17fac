/** Flags of `switchyard plan`. */

import { z } from "zod";

import { POLICIES } from "../core/placement/input.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { routerFlags } from "./router-client.ts";

const ranks = (description: string) =>
  z
    .array(z.string().regex(/^(\d{1,5}|local)$/))
    .default([])
    .meta({
      description,
      placeholder: "N,…",
      expectation: "ranks like 1,3, local for the routers' own devices",
    });

const numbers = (description: string, unit: string, defaultText: string) =>
  z
    .array(z.string().regex(/^((\d{1,5}|local)=)?\d+(\.\d+)?(e-?\d+)?$/))
    .default([])
    .meta({
      description,
      placeholder: `RANK=${unit.toUpperCase()},…`,
      expectation: `${unit} of shards like 0=8,local=16, with --trace also of all like 8`,
      defaultText,
    });

/** Schema of `switchyard plan`. */
export const planConfigSchema = z.object({
  ...routerFlags,
  without: ranks(
    "Shards that are supposed to be gone; local: the routers' own devices hold nothing; none: all are there",
  ),
  draining: ranks("Shards that are supposed to leave; none: those that do"),
  memory: numbers(
    "Memory of shards; a rank that there is not is added; local: of the routers' own devices",
    "GiB",
    "as it is; with --trace see --redundancy",
  ),
  secondsPerPair: numbers(
    "Time of one row through one expert",
    "seconds",
    "as measured; 5e-5 with --trace",
  ),
  rtt: numbers("Round trip to shards", "seconds", "as measured; 3e-4 with --trace"),
  bandwidth: numbers("Bytes per second to shards", "bytes", "as measured; 1e9 with --trace"),
  tokensPerStep: z.number().positive().max(1e6).optional().meta({
    description: "Tokens of a step",
    unit: "tokens",
    placeholder: "N",
    defaultText: "as forecast; 64 with --trace",
  }),
  load: z.string().min(1).optional().meta({
    description:
      'Load that is ahead: JSON with pairs per step of each expert of some MoE layers, like {"1": [3, 0.5, …]}',
    placeholder: "FILE",
    defaultText: "as forecast",
  }),
  moveBytes: z.number().min(0).max(1e15).optional().meta({
    description:
      "Bytes of experts that the plan loads at most beside what it must; above 0, more where less would save next to nothing",
    unit: "bytes",
    placeholder: "BYTES",
    expectation: "bytes from 0 to 1e15",
    defaultText: "what half of --plan-interval loads",
  }),
  steps: z.number().positive().max(1e15).optional().meta({
    description: "Steps that the placement is to stand: what moves cost is spread over them",
    unit: "steps",
    placeholder: "N",
    expectation: "a number above 0 to 1e15",
    defaultText: "as the router expects",
  }),
  fromNothing: z.boolean().default(false).meta({ description: "Plan as if nothing were held" }),
  minCopies: z.int().min(1).max(64).optional().meta({
    description: "Copies of each expert at least, as far as memory goes",
    placeholder: "N",
    defaultText: "as the router's",
  }),
  policy: z.enum(POLICIES).optional().meta({
    description: "How experts are placed, as --placement-policy of a router says it",
    defaultText: "as the router's",
  }),
  trace: z.string().min(1).optional().meta({
    description:
      "Replay recorded routing instead of asking a router: a safetensors file with topk_ids [tokens, MoE layers, top-k]",
    placeholder: "FILE",
    defaultText: "none: a router is asked",
  }),
  model: serviceOptions.model.meta({
    ...serviceOptions.model.meta(),
    description: "Model that the trace is of; only its config.json is read",
  }),
  shards: z.int().min(1).max(1024).default(8).meta({
    description: "Shards of the replay, ranks from 0",
    placeholder: "N",
  }),
  redundancy: z.number().min(0).max(16).default(0.25).meta({
    description:
      "Memory of a replay's shards beyond what all experts take, as a part of it; --memory goes before",
    placeholder: "PART",
  }),
  attentionMs: z.number().min(0).max(1e6).optional().meta({
    description: "Time of a replay's step beside its MoE layers: predicted TPOT is both",
    unit: "milliseconds",
    placeholder: "MS",
    defaultText: "as the router that recorded the trace measured it, else 0",
  }),
  window: z.int().min(64).max(1e7).default(2048).meta({
    description: "Tokens of the replay after which a new plan is made",
    unit: "tokens",
    placeholder: "N",
  }),
  expertsBits: serviceOptions.expertsBits,
  expertsGroup: serviceOptions.expertsGroup,
  json: z.boolean().default(false).meta({ description: "JSON instead of text" }),
});

/** Settings of `switchyard plan`, parsed and frozen. */
export type PlanConfig = Readonly<z.output<typeof planConfigSchema>>;
