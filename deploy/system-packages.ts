/**
 * Makes sure that a Vulkan driver and redis-server are there, for the tests also Chromium's SwiftShader.
 * Runs before `npm start` and `npm test`; installs as root on Debian and Ubuntu, else prints the commands.
 * SWITCHYARD_NO_INSTALL=1 forbids it to touch the system.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";

import type { SourceFile } from "./apt-sources.ts";
import {
  missingNeeds,
  planPackages,
  type Found,
  type Machine,
  type Need,
  type Purpose,
} from "./package-plan.ts";

/** Longest time of one apt-get command, milliseconds. */
const APT_DEADLINE_MS = 10 * 60_000;

const LIBRARY_DIRECTORIES = [
  `/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu`,
  "/usr/lib64",
  "/usr/lib",
  "/usr/local/lib",
  ...(process.env.LD_LIBRARY_PATH ?? "").split(delimiter).filter(Boolean),
];
const DRIVER_DIRECTORIES = [
  "/usr/share/vulkan/icd.d",
  "/usr/local/share/vulkan/icd.d",
  "/etc/vulkan/icd.d",
];
/** Where Chromium's packages put their software Vulkan. */
export const SWIFTSHADER_DRIVERS = [
  "/usr/lib/chromium/vk_swiftshader_icd.json",
  "/usr/lib64/chromium-browser/vk_swiftshader_icd.json",
  "/opt/google/chrome/vk_swiftshader_icd.json",
];

const CONSEQUENCES: Record<Need, string> = {
  vulkan: "no usable Vulkan driver: computing on the CPU (--device cpu)",
  redis: "no redis-server: the routing statistics stay in memory unless --redis-url is given",
  swiftshader: "no SwiftShader: the tests lack their second GPU adapter",
};

/** Looks at the machine; only reads. */
function inspectMachine(env: NodeJS.ProcessEnv): Machine {
  const release = new Map(
    [...readOr("/etc/os-release").matchAll(/^([A-Z_]+)="?([^"\n]*)"?$/gm)].map((match) => [
      match[1],
      match[2],
    ]),
  );
  return {
    platform: process.platform,
    distribution: release.get("ID") ?? "",
    codename: release.get("VERSION_CODENAME") ?? "",
    isRoot: process.getuid?.() === 0,
    mayInstall: ["", "0", "false"].includes(env.SWITCHYARD_NO_INSTALL ?? ""),
    aptSources: aptSources(),
    found: look(env),
  };
}

function look(env: NodeJS.ProcessEnv): Found {
  const isLinux = process.platform === "linux";
  const drivers = DRIVER_DIRECTORIES.flatMap((directory) =>
    existsSync(directory) ? readdirSync(directory) : [],
  );
  const hasDevice =
    existsSync("/dev/nvidiactl") ||
    (existsSync("/dev/dri") && readdirSync("/dev/dri").some((name) => name.startsWith("renderD")));
  const named = env.VK_DRIVER_FILES ?? env.VK_ICD_FILENAMES ?? "";
  return {
    vulkanLoader:
      !isLinux ||
      LIBRARY_DIRECTORIES.some((directory) => existsSync(join(directory, "libvulkan.so.1"))),
    mesa: drivers.some((name) => name.startsWith("lvp_icd")) ? mesaVersion() : undefined,
    vendorDriver:
      !isLinux ||
      (named !== "" && named.split(delimiter).every((path) => existsSync(path))) ||
      (hasDevice && drivers.some((name) => /^(nvidia|amd)_icd/.test(name))),
    redisServer: (env.PATH ?? "")
      .split(delimiter)
      .some((directory) => existsSync(join(directory, "redis-server"))),
    swiftshader: SWIFTSHADER_DRIVERS.some((path) => existsSync(path)),
  };
}

function mesaVersion(): string {
  const query = spawnSync("dpkg-query", ["-W", "-f", "${Version}", "mesa-vulkan-drivers"], {
    encoding: "utf8",
    timeout: 10_000,
  });
  return query.status === 0 && query.stdout !== "" ? query.stdout : "unknown";
}

function aptSources(): SourceFile[] {
  const directory = "/etc/apt/sources.list.d";
  const parts = existsSync(directory) ? readdirSync(directory) : [];
  return [
    "/etc/apt/sources.list",
    ...parts.filter((name) => /\.(list|sources)$/.test(name)).map((name) => join(directory, name)),
  ].map((path) => ({ path, text: readOr(path) }));
}

function readOr(path: string): string {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}

/** Runs apt-get; its output is shown only where it fails. True where it went well. */
function runCommand(command: readonly string[]): boolean {
  say(`${command.join(" ")} …`);
  const result = spawnSync(command[0], ["-o", "DPkg::Lock::Timeout=120", ...command.slice(1)], {
    encoding: "utf8",
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    timeout: APT_DEADLINE_MS,
    maxBuffer: 64 * 1024 * 1024,
  });
  if (result.status === 0) return true;
  say(`${result.stdout}${result.stderr}${result.error?.message ?? ""}`.trimEnd());
  return false;
}

/** Makes the machine ready for a purpose as far as it may; returns the exit code. */
function makeReady(purpose: Purpose): number {
  const machine = inspectMachine(process.env);
  const plan = planPackages(purpose, machine);
  if (plan.kind === "complete") return 0;

  let missing = plan.needs;
  if (plan.kind === "install") {
    say(
      `installing what is missing (${plan.needs.join(", ")}); SWITCHYARD_NO_INSTALL=1 forbids it`,
    );
    if (plan.source !== undefined) writeFileSync(plan.source.path, plan.source.text);
    // A source that can not be reached makes `update` fail in part; whether the packages came is what counts.
    for (const command of plan.commands) runCommand(command);
    missing = missingNeeds(purpose, look(process.env));
  } else {
    say(`missing: ${plan.needs.join(", ")}. To install:\n\n${plan.commands.join("\n")}\n`);
  }
  for (const need of missing) say(CONSEQUENCES[need]);
  if (missing.length === 0) return 0;
  if (purpose === "test") say("the tests need all of it");
  return purpose === "test" ? 1 : 0;
}

function say(text: string): void {
  process.stderr.write(`system packages: ${text}\n`);
}

if (import.meta.main) {
  const purpose = process.argv[2] === "--for" ? process.argv[3] : undefined;
  if (purpose === "start" || purpose === "test") {
    process.exitCode = makeReady(purpose);
  } else {
    process.stderr.write("Usage: node deploy/system-packages.ts --for start|test\n");
    process.exitCode = 2;
  }
}
