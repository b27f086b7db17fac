/** `switchyard.json` beside `config.json`: what a model's directory says of how it is served. */

import { join } from "node:path";

import { z } from "zod";

import type { ExpertFormat } from "../expert-format.ts";
import type { ModelConfig } from "./config.ts";
import { type ConfigProblem, ModelConfigError, zodProblems } from "./config-error.ts";
import { type JsonObject, readJsonFile } from "./checkpoint/json-file.ts";

/** Bytes of the file at most: every expert of the largest models by name. */
const MAX_OVERLAY_BYTES = 16 * 1024 * 1024;

/** What the overlay of a model says. */
export interface ModelOverlay {
  /** Format of an expert; undefined where the overlay says nothing of it. */
  readonly formatOf: (layer: number, expert: number) => ExpertFormat | undefined;
  /** The file's content, for the model's hash. */
  readonly raw: JsonObject;
}

const FORMATS: Readonly<Record<string, ExpertFormat>> = {
  32: "f32",
  16: "f16",
  8: "int8",
  4: "int4-g32",
  mxfp4: "mxfp4",
};

const BITS = 'bits: 32, 16, 8, 4, "mxfp4", or {"bits": 4, "group": 32, 64 or 128}';

const bitsSchema = z.union(
  [
    z.union([z.literal(32), z.literal(16), z.literal(8), z.literal(4), z.literal("mxfp4")]),
    z.strictObject({
      bits: z.literal(4),
      group: z.union([z.literal(32), z.literal(64), z.literal(128)]),
    }),
  ],
  { error: BITS },
);

const index = z.string().regex(/^(0|[1-9]\d{0,8})$/);

const overlaySchema = z.strictObject(
  {
    expertsBits: z
      .record(
        index,
        z.union([bitsSchema, z.record(index, bitsSchema, { error: BITS })], {
          error: `${BITS}; or expert → bits`,
        }),
        { error: "layer → bits, or layer → expert → bits" },
      )
      .optional(),
  },
  { error: 'an object with "expertsBits" alone' },
);

type Bits = z.output<typeof bitsSchema>;

/** Reads a directory's `switchyard.json`; undefined where there is none. Throws ModelConfigError with every problem, or JsonFileError. */
export async function readOverlay(
  dir: string,
  config: ModelConfig,
): Promise<ModelOverlay | undefined> {
  const file = join(dir, "switchyard.json");
  const raw = await readJsonFile(file, MAX_OVERLAY_BYTES);
  return raw && parseOverlay(raw, config, file);
}

/** The content of a `switchyard.json`. Throws ModelConfigError naming `file` and every value that the model does not take. */
export function parseOverlay(raw: JsonObject, config: ModelConfig, file: string): ModelOverlay {
  const parsed = overlaySchema.safeParse(raw);
  if (!parsed.success) throw new ModelConfigError(file, zodProblems(parsed.error, raw));
  const problems: ConfigProblem[] = [];
  const whole = new Map<number, ExpertFormat>();
  const single = new Map<number, Map<number, ExpertFormat>>();
  for (const [layerText, value] of Object.entries(parsed.data.expertsBits ?? {})) {
    const layer = Number(layerText);
    if (config.layers[layer] !== "moe") {
      const expectation = `a layer with experts, of ${config.numLayers} layers`;
      problems.push({ name: "expertsBits layer", value: layer, expectation });
      continue;
    }
    if (isBits(value)) {
      whole.set(layer, toFormat(value));
      continue;
    }
    const experts = new Map<number, ExpertFormat>();
    for (const [expertText, bits] of Object.entries(value)) {
      const expert = Number(expertText);
      if (expert >= config.numExperts) {
        const name = `expertsBits layer ${layer} expert`;
        problems.push({ name, value: expert, expectation: `an expert of ${config.numExperts}` });
      }
      experts.set(expert, toFormat(bits));
    }
    single.set(layer, experts);
  }
  if (problems.length > 0) throw new ModelConfigError(file, problems);
  return {
    formatOf: (layer, expert) => single.get(layer)?.get(expert) ?? whole.get(layer),
    raw,
  };
}

/** Whether it is one expert's or a whole layer's bits, not a table of experts. */
function isBits(value: Bits | Record<string, Bits>): value is Bits {
  return typeof value !== "object" || "bits" in value;
}

function toFormat(bits: Bits): ExpertFormat {
  return typeof bits === "object" ? `int4-g${bits.group}` : FORMATS[bits];
}
