/** llama.cpp by the npm package node-llama-cpp, which is installed on demand, apart from the project's own packages. */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { startChildContender } from "./child-contender.ts";
import { type Contender, type ContenderLimits, PeerUnavailableError } from "./contender.ts";
import type { LlamaChildOptions } from "./llama-cpp-child.ts";
import { runTool } from "./tool.ts";

/** llama-cpp-child.ts uses what this version has inside. */
const VERSION = "3.22.1";
/** Vulkan devices that are looked through. */
const MAX_DEVICES = 8;

/** Which of its backends, and what it runs. */
export interface LlamaCppOptions extends ContenderLimits {
  readonly backend: "vulkan" | "cpu";
  /** Folder of packages and files that peers need. */
  readonly cache: string;
  readonly gguf: string;
  /** WebGPU's name of the device that Switchyard runs on: llama.cpp must run on the same. */
  readonly vulkanDevice: string | undefined;
  /** Tokens of one batch at most. */
  readonly batchSize: number;
  readonly flashAttention: boolean;
  readonly timeoutMs: number;
}

/** Installs the package where it is not yet and starts llama.cpp. Rejects with PeerUnavailableError. */
export async function openLlamaCpp(options: LlamaCppOptions): Promise<Contender> {
  const entry = await install(join(options.cache, "node-llama-cpp"), options.backend);
  const childOptions: LlamaChildOptions = {
    entry,
    gguf: options.gguf,
    gpu: options.backend === "vulkan" ? "vulkan" : false,
    contextSize: options.maxStreamTokens,
    maxStreams: options.maxStreams,
    batchSize: options.batchSize,
    flashAttention: options.flashAttention,
  };
  const start = (env: Readonly<Record<string, string>>) =>
    startChildContender({
      name: `llama.cpp ${options.backend}`,
      command: process.execPath,
      args: [join(import.meta.dirname, "llama-cpp-child.ts"), JSON.stringify(childOptions)],
      env,
      timeoutMs: options.timeoutMs,
    });
  if (options.backend === "cpu") return start({});
  if (options.vulkanDevice === undefined) {
    throw new PeerUnavailableError("llama.cpp vulkan: Switchyard itself found no GPU adapter");
  }
  return onDevice(options.vulkanDevice, start);
}

/** A device that is named by its index is used even where it is a CPU, which llama.cpp otherwise passes over. */
async function onDevice(
  wanted: string,
  start: (env: Readonly<Record<string, string>>) => Promise<Contender>,
): Promise<Contender> {
  const seen: string[] = [];
  for (let index = 0; index < MAX_DEVICES; index++) {
    let contender: Contender;
    try {
      contender = await start({ GGML_VK_VISIBLE_DEVICES: String(index) });
    } catch (error) {
      if (seen.length === 0) throw error;
      break; // no device of this index
    }
    if (slug(contender.device) === slug(wanted)) return contender;
    seen.push(contender.device);
    await contender.close();
  }
  const found = seen.join(", ");
  throw new PeerUnavailableError(`llama.cpp vulkan: no device "${wanted}", but ${found}`);
}

/**
 * WebGPU names a device as Vulkan does, but for its case and everything between letters and digits. The name of the
 * software driver ends with the width of its vectors, which is a setting of each process.
 */
function slug(name: string): string {
  return name
    .toLowerCase()
    .replace(/\d+[^a-z0-9]+bits/, "")
    .split(/[^a-z0-9]+/)
    .filter(Boolean)
    .join("-");
}

/** The package's entry. Optional packages for other systems and build scripts are left out: binaries come ready. */
async function install(folder: string, backend: "vulkan" | "cpu"): Promise<string> {
  const system = `${platformName()}-${process.arch}`;
  const suffix = backend === "vulkan" ? "-vulkan" : "";
  const packages = ["node-llama-cpp", `@node-llama-cpp/${system}${suffix}`];
  const entry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
  const missing = [];
  for (const name of packages) {
    if ((await installedVersion(folder, name)) !== VERSION) missing.push(`${name}@${VERSION}`);
  }
  if (missing.length === 0) return entry;
  await mkdir(folder, { recursive: true });
  // Without one npm would look for a package above the folder, and find the project's own; what an earlier run has
  // installed is in it, and would be removed with it.
  await writeFile(join(folder, "package.json"), '{ "private": true }\n', { flag: "wx" }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    },
  );
  console.error(`installing ${missing.join(" and ")} into ${folder}`);
  const flags = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"];
  await runTool("npm", ["install", "--prefix", folder, ...flags, ...missing]);
  return entry;
}

function platformName(): string {
  switch (process.platform) {
    case "win32":
      return "win";
    case "darwin":
      return "mac";
    default:
      return process.platform;
  }
}

async function installedVersion(folder: string, name: string): Promise<string | undefined> {
  try {
    const text = await readFile(join(folder, "node_modules", name, "package.json"), "utf8");
    return (JSON.parse(text) as { version: string }).version;
  } catch {
    return undefined;
  }
}
