/** Measured choices of kernels in a file: one per adapter, driver, widths and format. */

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";

import { z } from "zod";

import type { Candidate } from "./expert-candidates.ts";

/** The fastest candidate at one density. */
export interface TunedPoint {
  readonly pairsPerSlot: number;
  readonly candidate: Candidate;
  /** Seconds of one run of both halves, sorting included. */
  readonly seconds: number;
}

const threads = z.union([z.literal(8), z.literal(16)]);
const few = z.union([z.literal(1), z.literal(2), z.literal(4)]);

const candidateSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("plain"), rows: z.union([z.literal(1), z.literal(4)]) }),
  z.object({
    kind: z.literal("matvec"),
    rows: z.union([z.literal(1), z.literal(2), z.literal(4), z.literal(8)]),
    shape: z.object({
      threads: z.union([z.literal(32), z.literal(64), z.literal(128), z.literal(256)]),
      columns: z.union([z.literal(1), z.literal(2), z.literal(4), z.literal(8)]),
      reduce: z.enum(["subgroup", "workgroup"]),
    }),
  }),
  z.object({
    kind: z.literal("gemm"),
    shape: z.object({
      threads: z.tuple([threads, threads]),
      block: z.tuple([
        z.union([z.literal(2), z.literal(4), z.literal(8)]),
        z.union([z.literal(2), z.literal(4), z.literal(8)]),
      ]),
      tile: z.literal("f32"),
    }),
  }),
  z.object({
    kind: z.literal("subgroupMatrix"),
    shape: z.object({
      M: z.int(),
      N: z.int(),
      K: z.int(),
      subgroupSize: z.int(),
      subgroups: z.tuple([few, few]),
      block: z.tuple([z.union([z.literal(2), z.literal(4)]), few]),
    }),
  }),
]);

const fileSchema = z.object({
  version: z.literal(1),
  key: z.string(),
  points: z
    .array(z.object({ pairsPerSlot: z.number(), candidate: candidateSchema, seconds: z.number() }))
    .min(1),
});

/** The choices of a file; undefined where it can not be read, does not fit, or is of another key. */
export async function readPoints(
  file: string,
  key: string,
): Promise<readonly TunedPoint[] | undefined> {
  try {
    const read = fileSchema.safeParse(JSON.parse(await readFile(file, "utf8")));
    return read.success && read.data.key === key ? read.data.points : undefined;
  } catch {
    return undefined;
  }
}

/** Writes the choices for a key; a directory that can not be written is done without. */
export async function writePoints(
  directory: string,
  file: string,
  key: string,
  points: readonly TunedPoint[],
): Promise<void> {
  try {
    await mkdir(directory, { recursive: true });
    const part = `${file}.${process.pid}`;
    await writeFile(part, JSON.stringify({ version: 1, key, points }, undefined, 2));
    await rename(part, file);
  } catch {
    // A read-only home: the next start measures again.
  }
}

/** Removes a file of choices; where there is none, or it can not be removed, nothing happens. */
export async function dropPoints(file: string): Promise<void> {
  try {
    await rm(file, { force: true });
  } catch {
    // A read-only home: the next start finds the choices again, and refuses them again.
  }
}
