#!/usr/bin/env node
// The entry of `npx switchyard`: plain JavaScript, because the Node that finds it may be too old to run TypeScript.
// It hands over to the Node that the package pins.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const program = fileURLToPath(new URL("switchyard.ts", import.meta.url));

if (Number(process.versions.node.split(".")[0]) >= 24) {
  await import("./switchyard.ts");
} else {
  const node = fileURLToPath(new URL("../node_modules/.bin/node", import.meta.url));
  if (!existsSync(node)) {
    console.error(`switchyard: ${node} is not there; run npm ci in the package's folder first`);
    process.exit(1);
  }
  // The IPC channel tells the program when this process is gone, even killed outright.
  const child = spawn(node, [program, ...process.argv.slice(2)], {
    stdio: ["inherit", "inherit", "inherit", "ipc"],
  });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => child.kill(signal));
  }
  child.on("error", (error) => {
    console.error(`switchyard: ${node} does not start: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}
