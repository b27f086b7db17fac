/** Hugging Face transformers, in a Python environment that is made on demand. */

import { access, mkdir } from "node:fs/promises";
import { join } from "node:path";

import { errorMessage } from "../../core/error-message.ts";
import { startChildContender } from "./child-contender.ts";
import { type Contender, PeerUnavailableError } from "./contender.ts";
import { runTool } from "./tool.ts";

const TORCH = "torch==2.15.0";
const TRANSFORMERS = "transformers==5.23.0";

/** What it runs, and where it comes from. */
export interface TransformersOptions {
  readonly model: string;
  readonly dtype: "auto" | "float32" | "bfloat16" | "float16";
  /** Folder of packages and files that peers need. */
  readonly cache: string;
  /** A Python with venv and pip. */
  readonly python: string;
  /** Package index that torch comes from; absent: pip's own. */
  readonly torchIndex: string | undefined;
  readonly timeoutMs: number;
}

/** Makes the environment where it is not yet and starts transformers. Rejects with PeerUnavailableError. */
export async function openTransformers(options: TransformersOptions): Promise<Contender> {
  const python = await environment(options);
  return startChildContender({
    name: "transformers",
    command: python,
    args: [join(import.meta.dirname, "transformers_run.py"), options.model, options.dtype],
    timeoutMs: options.timeoutMs,
  });
}

/** The environment's Python. */
async function environment(options: TransformersOptions): Promise<string> {
  const folder = join(options.cache, "transformers");
  const venv = join(folder, "venv");
  const bin = process.platform === "win32" ? "Scripts" : "bin";
  const python = join(venv, bin, "python");
  if (!(await exists(python))) {
    await mkdir(folder, { recursive: true });
    await runTool(options.python, ["-m", "venv", venv]).catch((error: unknown) => {
      throw new PeerUnavailableError(
        `transformers need Python 3.10 or newer with venv: ${errorMessage(error)}`,
      );
    });
  }
  // A build may add to torch's version, as in 2.15.0+cpu.
  const wanted = JSON.stringify([TORCH, TRANSFORMERS].map((name) => name.split("==")));
  const check = `from importlib.metadata import version\nassert all(version(n).split("+")[0] == v for n, v in ${wanted})`;
  const installed = await runTool(python, ["-c", check]).then(
    () => true,
    () => false,
  );
  if (!installed) {
    console.error(`installing ${TORCH} and ${TRANSFORMERS} into ${venv}`);
    const index = options.torchIndex === undefined ? [] : ["--index-url", options.torchIndex];
    const install = ["-m", "pip", "install", "--no-compile", "--no-cache-dir"];
    await runTool(python, [...install, ...index, TORCH]);
    await runTool(python, [...install, TRANSFORMERS]);
  }
  return python;
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
