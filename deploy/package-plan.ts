/** Which system packages are missing for a purpose, and which commands bring them; pure. */

import { backportsSource, type SourceFile } from "./apt-sources.ts";

/** What the packages are for: serving, or running the tests. */
export type Purpose = "start" | "test";

/** What the program needs of the system beside node_modules. */
export type Need = "vulkan" | "redis" | "swiftshader";

/** What a look at the machine found. */
export interface Found {
  /** libvulkan.so.1, or a platform whose GPU API needs none. */
  readonly vulkanLoader: boolean;
  /** Version of mesa's Vulkan drivers; "unknown" where they are there but no package manager tells. */
  readonly mesa: string | undefined;
  /** A vendor's own Vulkan driver with its device: mesa is not needed then. */
  readonly vendorDriver: boolean;
  readonly redisServer: boolean;
  /** The software Vulkan driver that comes with Chromium: the tests' second adapter. */
  readonly swiftshader: boolean;
}

/** The machine as far as installing goes. */
export interface Machine {
  readonly platform: NodeJS.Platform;
  /** ID and VERSION_CODENAME of /etc/os-release; empty where there is none. */
  readonly distribution: string;
  readonly codename: string;
  readonly isRoot: boolean;
  /** False where SWITCHYARD_NO_INSTALL forbids it. */
  readonly mayInstall: boolean;
  readonly aptSources: readonly SourceFile[];
  readonly found: Found;
}

/** What to do about missing packages. */
export type Plan =
  | { readonly kind: "complete" }
  | {
      readonly kind: "install";
      readonly needs: readonly Need[];
      /** A source to add before. */
      readonly source: SourceFile | undefined;
      readonly commands: readonly (readonly string[])[];
    }
  | {
      readonly kind: "advise";
      readonly needs: readonly Need[];
      /** Shell lines for the user. */
      readonly commands: readonly string[];
    };

/** First mesa whose llvmpipe Dawn accepts. */
const FIRST_MESA = 24;

/** Debian releases whose own mesa is too old and whose backports have a newer one. */
const BACKPORTED = new Set(["bookworm"]);

/** What is missing for a purpose. */
export function missingNeeds(purpose: Purpose, found: Found): Need[] {
  const needs: Need[] = [];
  if (!found.vulkanLoader || !(found.vendorDriver || isUsableMesa(found.mesa)))
    needs.push("vulkan");
  if (!found.redisServer) needs.push("redis");
  if (purpose === "test" && !found.swiftshader) needs.push("swiftshader");
  return needs;
}

/** What to do on this machine so that nothing is missing. */
export function planPackages(purpose: Purpose, machine: Machine): Plan {
  const needs = missingNeeds(purpose, machine.found);
  if (needs.length === 0) return { kind: "complete" };
  if (machine.platform !== "linux") return { kind: "advise", needs, commands: brewCommands(needs) };
  if (machine.distribution === "debian" || machine.distribution === "ubuntu") {
    return planApt(needs, machine);
  }
  return { kind: "advise", needs, commands: otherCommands(needs, machine.distribution) };
}

function planApt(needs: readonly Need[], machine: Machine): Plan {
  const isUbuntu = machine.distribution === "ubuntu";
  const notes: string[] = [];
  let source: SourceFile | undefined;
  const commands: string[][] = [];
  const packages: string[] = [];

  if (needs.includes("vulkan")) {
    packages.push("libvulkan1");
    if (machine.found.vendorDriver) {
      // The vendor's driver only lacks the loader.
    } else if (BACKPORTED.has(machine.codename)) {
      const backports = backportsSource(machine.codename, machine.aptSources);
      if (backports.kind === "add") source = backports.file;
      if (backports.kind === "unknown") {
        notes.push(
          `# add a source of ${machine.codename}-backports to /etc/apt/sources.list.d first`,
        );
      }
      commands.push(aptInstall(["mesa-vulkan-drivers"], `${machine.codename}-backports`));
    } else {
      packages.push("mesa-vulkan-drivers");
    }
  }
  if (needs.includes("redis")) packages.push("redis-server");
  if (needs.includes("swiftshader")) {
    // Ubuntu's chromium is a snap, whose files other programs can not use.
    if (isUbuntu) notes.push("# install Google Chrome's .deb: it brings vk_swiftshader_icd.json");
    else packages.push("chromium");
  }
  if (packages.length > 0) commands.push(aptInstall(packages));
  commands.unshift(["apt-get", "update"]);

  if (machine.isRoot && machine.mayInstall && notes.length === 0) {
    return { kind: "install", needs, source, commands };
  }
  const sudo = machine.isRoot ? "" : "sudo ";
  const addSource =
    source === undefined
      ? []
      : [`${sudo}tee ${source.path} <<'END'\n${source.text.trimEnd()}\nEND`];
  return {
    kind: "advise",
    needs,
    commands: [...notes, ...addSource, ...commands.map((command) => `${sudo}${command.join(" ")}`)],
  };
}

function aptInstall(packages: readonly string[], suite?: string): string[] {
  const target = suite === undefined ? [] : ["-t", suite];
  return ["apt-get", "install", "-y", "--no-install-recommends", ...target, ...packages];
}

function brewCommands(needs: readonly Need[]): string[] {
  return needs.map((need) => {
    switch (need) {
      case "redis":
        return "brew install redis";
      case "vulkan":
      case "swiftshader":
        return "# the tests' software Vulkan adapter (SwiftShader) needs Linux";
    }
  });
}

function otherCommands(needs: readonly Need[], distribution: string): string[] {
  if (distribution !== "fedora") {
    const wanted: Record<Need, string> = {
      vulkan: `the Vulkan loader and mesa's Vulkan drivers, ${FIRST_MESA} or newer`,
      redis: "redis-server",
      swiftshader: "chromium (its vk_swiftshader_icd.json)",
    };
    return needs.map((need) => `# install ${wanted[need]}`);
  }
  const packages: Record<Need, string> = {
    vulkan: "vulkan-loader mesa-vulkan-drivers",
    redis: "redis",
    swiftshader: "chromium",
  };
  return [`sudo dnf install ${needs.map((need) => packages[need]).join(" ")}`];
}

function isUsableMesa(version: string | undefined): boolean {
  if (version === undefined) return false;
  // Debian writes 25.0.7-2~bpo12+1, sometimes with an epoch before.
  const major = /^(?:\d+:)?(\d+)\./.exec(version)?.[1];
  return version === "unknown" || Number(major ?? 0) >= FIRST_MESA;
}
