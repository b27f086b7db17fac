/** `npm run bench -- load-time`: how long a shard takes to load its experts, beside reading the same bytes; predicted and real memory. */

import { execFile } from "node:child_process";
import { access, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { z } from "zod";

import { EXPERT_FORMATS } from "../core/expert-format.ts";
import { childEnvironment, loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { median } from "./load/statistics.ts";
import type { LoadTimeAnswer, LoadTimeTask } from "./load-time-child.ts";
import { readSyntheticConfig } from "./synthetic/command.ts";
import { writeSynthetic } from "./synthetic/generate.ts";

const schema = z.object({
  config: z.string().default("deepseek-v2-lite").meta({
    description: "config.json, or the name of one that comes with the bench",
    placeholder: "FILE|NAME",
  }),
  layers: z.int().min(1).default(2).meta({
    description: "Decoder layers of the checkpoint of random weights",
    placeholder: "N",
  }),
  dir: z.string().optional().meta({
    description: "Directory of the checkpoint; written where it is not there yet, and kept",
    placeholder: "DIR",
    defaultText: "a temporary one",
  }),
  format: z
    .enum(EXPERT_FORMATS as [string, ...string[]])
    .default("int4-g32")
    .meta({
      description: "Format of the experts",
    }),
  device: serviceOptions.device,
  repeats: z.int().min(1).default(3).meta({
    description: "Times that loading and reading take turns, with a warm and with a cold cache",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- load-time",
  summary:
    "Loads a shard's experts and reads the same bytes, in turns, and prints times and memory as Markdown.",
  notes:
    "A cold cache needs the right to write /proc/sys/vm/drop_caches; without it only a warm one is measured.\n" +
    "A process of its own loads each time: its memory is the peak above what it had before the load.",
};

const CHILD = join(import.meta.dirname, "load-time-child.ts");
const run = promisify(execFile);

interface Row {
  readonly cache: "warm" | "cold";
  readonly load: LoadTimeAnswer;
  readonly read: LoadTimeAnswer;
}

/** Runs the bench; answers its exit code. */
export async function runLoadTimeCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const dir = settings.dir ?? join(await mkdtemp(join(tmpdir(), "switchyard-load-")), "model");
  try {
    await makeCheckpoint(dir, settings);
    const format = settings.format as LoadTimeTask["format"];
    const task = { dir, format, device: settings.device };
    const rows: Row[] = [];
    // Both once before anything counts: the cache is warm and the drivers have compiled.
    await measure({ ...task, kind: "read" });
    await measure({ ...task, kind: "load" });
    for (const cache of ["warm", "cold"] as const) {
      for (let i = 0; i < settings.repeats; i++) {
        if (cache === "cold" && !(await dropCaches())) continue;
        const read = await measure({ ...task, kind: "read" });
        if (cache === "cold") await dropCaches();
        rows.push({ cache, read, load: await measure({ ...task, kind: "load" }) });
      }
    }
    console.log(report(rows, settings.format));
    return 0;
  } finally {
    if (settings.dir === undefined) await rm(join(dir, ".."), { recursive: true, force: true });
  }
}

async function makeCheckpoint(
  dir: string,
  { config, layers }: { readonly config: string; readonly layers: number },
): Promise<void> {
  const there = await access(join(dir, "config.json")).then(
    () => true,
    () => false,
  );
  if (there) return;
  const { file, raw } = await readSyntheticConfig(config);
  await writeSynthetic({
    raw,
    configFile: file,
    layers,
    out: dir,
    seed: 0,
    maxShardBytes: 4_000_000_000,
  });
}

async function measure(task: LoadTimeTask): Promise<LoadTimeAnswer> {
  const { stdout } = await run(process.execPath, [CHILD, JSON.stringify(task)], {
    env: childEnvironment(),
  });
  const line = stdout.split("\n").find((text) => text.startsWith("{"));
  if (line === undefined) throw new Error(`no answer: ${stdout}`);
  return JSON.parse(line) as LoadTimeAnswer;
}

/** Empties the page cache; false where this process may not. */
async function dropCaches(): Promise<boolean> {
  try {
    await run("sync");
    await writeFile("/proc/sys/vm/drop_caches", "1");
    return true;
  } catch {
    return false;
  }
}

function report(rows: readonly Row[], format: string): string {
  const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
  const [{ load }] = rows;
  const off = (load.residentBytes / load.predictedBytes - 1) * 100;
  const lines = [
    `Experts in ${format} on ${load.adapter}: predicted ${mib(load.predictedBytes)} MiB, resident ${mib(load.residentBytes)} MiB (${off.toFixed(2)} % off)\n`,
    "| page cache | read MiB | reading s | loading s | loading / reading | peak host MiB | beside resident |",
    "|---|---|---|---|---|---|---|",
  ];
  for (const cache of ["warm", "cold"] as const) {
    const of = rows.filter((row) => row.cache === cache);
    if (of.length === 0) {
      lines.push(`| ${cache} | not permitted | | | | | |`);
      continue;
    }
    const read = median(of.map((row) => row.read.seconds));
    const loaded = median(of.map((row) => row.load.seconds));
    const ratio = median(of.map((row) => row.load.seconds / row.read.seconds));
    const peak = median(of.map((row) => row.load.peakBytes));
    lines.push(
      `| ${cache} | ${mib(load.bytesRead)} | ${read.toFixed(2)} | ${loaded.toFixed(2)} | ${ratio.toFixed(2)} | ` +
        `${mib(peak)} | ${mib(peak - load.residentBytes)} |`,
    );
  }
  return lines.join("\n");
}
