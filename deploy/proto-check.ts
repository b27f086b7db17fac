/** Fails where proto/gen is not what the .proto files give: generated anew into a temporary folder and compared. */

import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "..");
const GENERATED = "proto/gen";
const DEADLINE_MS = 120_000;

/** Names of files that differ, are missing or are too many in `actual`, compared with `expected`; both are folders. */
function differingFiles(expected: string, actual: string): string[] {
  const list = (folder: string): string[] =>
    existsSync(folder)
      ? readdirSync(folder, { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
      : [];
  const names = new Set([...list(expected), ...list(actual)]);
  const read = (folder: string, name: string): Buffer | undefined =>
    existsSync(join(folder, name)) ? readFileSync(join(folder, name)) : undefined;
  return [...names].toSorted().filter((name) => {
    const [one, other] = [read(expected, name), read(actual, name)];
    return one === undefined || other === undefined || !one.equals(other);
  });
}

/** Generates from `root`'s .proto files and compares with its proto/gen; names of differing files. Throws where buf fails. */
function checkGenerated(root: string): string[] {
  const folder = mkdtempSync(join(tmpdir(), "switchyard-proto-"));
  try {
    for (const name of ["buf.yaml", "buf.gen.yaml", "proto/switchyard"]) {
      cpSync(join(root, name), join(folder, name), { recursive: true });
    }
    symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
    buf(folder, ["lint"]);
    buf(folder, ["generate"]);
    buf(folder, ["build", "-o", `${GENERATED}/descriptor.binpb`]);
    return differingFiles(join(folder, GENERATED), join(root, GENERATED));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function buf(cwd: string, argv: readonly string[]): void {
  const result = spawnSync("node_modules/.bin/buf", argv, {
    cwd,
    encoding: "utf8",
    timeout: DEADLINE_MS,
  });
  if (result.status !== 0) {
    throw new Error(
      `buf ${argv.join(" ")} failed: ${result.error?.message ?? ""}${result.stdout ?? ""}${result.stderr ?? ""}`,
    );
  }
}

if (import.meta.main) {
  const names = checkGenerated(ROOT);
  for (const name of names) process.stderr.write(`${GENERATED}/${name} is not up to date\n`);
  if (names.length > 0) process.stderr.write("Run: npm run proto\n");
  process.exitCode = names.length === 0 ? 0 : 1;
}
