import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";

import { missingNeeds, planPackages, type Found, type Machine } from "../../deploy/package-plan.ts";

const NOTHING: Found = {
  vulkanLoader: false,
  mesa: undefined,
  vendorDriver: false,
  redisServer: false,
  swiftshader: false,
};
const ALL: Found = {
  ...NOTHING,
  vulkanLoader: true,
  mesa: "25.0.7-2",
  redisServer: true,
  swiftshader: true,
};

const DEBIAN_12: Machine = {
  platform: "linux",
  distribution: "debian",
  codename: "bookworm",
  isRoot: true,
  mayInstall: true,
  aptSources: [
    { path: "/etc/apt/sources.list", text: "deb http://m.example/debian bookworm main\n" },
  ],
  found: NOTHING,
};
const INSTALL = "apt-get install -y --no-install-recommends";

function commands(machine: Machine, purpose: "start" | "test" = "start") {
  const plan = planPackages(purpose, machine);
  return plan.kind === "install"
    ? { kind: plan.kind, commands: plan.commands.map((command) => command.join(" ")) }
    : plan.kind === "advise"
      ? { kind: plan.kind, commands: plan.commands }
      : { kind: plan.kind };
}

test("Debian 12 as root takes mesa from backports and the rest from its own release", () => {
  assert.deepEqual(commands(DEBIAN_12), {
    kind: "install",
    commands: [
      "apt-get update",
      `${INSTALL} -t bookworm-backports mesa-vulkan-drivers`,
      `${INSTALL} libvulkan1 redis-server`,
    ],
  });
  const plan = planPackages("start", DEBIAN_12);
  assert.ok(plan.kind === "install");
  assert.equal(plan.source?.text, "deb http://m.example/debian bookworm-backports main\n");
});

test("Debian 12 with backports known adds no source; the tests also need chromium", () => {
  const machine = {
    ...DEBIAN_12,
    aptSources: [{ path: "a.list", text: "deb http://m.example/debian bookworm-backports main\n" }],
  };
  const plan = planPackages("test", machine);
  assert.ok(plan.kind === "install");
  assert.equal(plan.source, undefined);
  assert.deepEqual(
    commands(machine, "test").commands?.at(-1),
    `${INSTALL} libvulkan1 redis-server chromium`,
  );
});

test("Debian 13 and Ubuntu 24.04 have a mesa that is new enough", () => {
  for (const [distribution, codename] of [
    ["debian", "trixie"],
    ["ubuntu", "noble"],
  ]) {
    assert.deepEqual(commands({ ...DEBIAN_12, distribution, codename, aptSources: [] }), {
      kind: "install",
      commands: ["apt-get update", `${INSTALL} libvulkan1 mesa-vulkan-drivers redis-server`],
    });
  }
});

test("Ubuntu's tests say where SwiftShader comes from, since its chromium is a snap", () => {
  const plan = commands({ ...DEBIAN_12, distribution: "ubuntu", codename: "noble" }, "test");
  assert.equal(plan.kind, "advise");
  assert.match(plan.commands?.[0] ?? "", /^# install Google Chrome/);
});

test("without root the exact commands are printed, with sudo", () => {
  assert.deepEqual(commands({ ...DEBIAN_12, isRoot: false }), {
    kind: "advise",
    commands: [
      "sudo tee /etc/apt/sources.list.d/switchyard-backports.list <<'END'\ndeb http://m.example/debian bookworm-backports main\nEND",
      "sudo apt-get update",
      `sudo ${INSTALL} -t bookworm-backports mesa-vulkan-drivers`,
      `sudo ${INSTALL} libvulkan1 redis-server`,
    ],
  });
});

test("SWITCHYARD_NO_INSTALL makes root's commands advice", () => {
  const plan = commands({ ...DEBIAN_12, mayInstall: false });
  assert.equal(plan.kind, "advise");
  assert.equal(plan.commands?.[1], "apt-get update");
});

test("Debian 12 without a source of its own says what to add", () => {
  const plan = commands({ ...DEBIAN_12, aptSources: [] });
  assert.equal(plan.kind, "advise");
  assert.match(plan.commands?.[0] ?? "", /add a source of bookworm-backports/);
});

test("elsewhere the names are given: Fedora's, Homebrew's, in words", () => {
  assert.deepEqual(commands({ ...DEBIAN_12, distribution: "fedora" }, "test").commands, [
    "sudo dnf install vulkan-loader mesa-vulkan-drivers redis chromium",
  ]);
  const mac = { ...DEBIAN_12, platform: "darwin" as const, found: { ...ALL, redisServer: false } };
  assert.deepEqual(commands(mac).commands, ["brew install redis"]);
  assert.match(
    commands({ ...DEBIAN_12, distribution: "arch" }).commands?.join() ?? "",
    /redis-server/,
  );
});

test("only what is missing is installed", () => {
  assert.deepEqual(commands({ ...DEBIAN_12, found: ALL }), { kind: "complete" });
  assert.deepEqual(commands({ ...DEBIAN_12, found: { ...ALL, redisServer: false } }).commands, [
    "apt-get update",
    `${INSTALL} redis-server`,
  ]);
  assert.deepEqual(
    commands({ ...DEBIAN_12, found: { ...ALL, swiftshader: false } }).kind,
    "complete",
  );
});

test("mesa 22 is too old, 24 and later are not, a vendor's driver replaces it", () => {
  const needs = (found: Partial<Found>) => missingNeeds("start", { ...ALL, ...found });
  assert.deepEqual(needs({ mesa: "22.3.6-1+deb12u1" }), ["vulkan"]);
  assert.deepEqual(needs({ mesa: "24.0.1" }), []);
  assert.deepEqual(needs({ mesa: "1:25.0.7-2~bpo12+1" }), []);
  assert.deepEqual(needs({ mesa: "unknown" }), []);
  assert.deepEqual(needs({ mesa: undefined, vendorDriver: true }), []);
  assert.deepEqual(needs({ vendorDriver: true, vulkanLoader: false }), ["vulkan"]);
});

test("a vendor's driver that lacks the loader brings no mesa", () => {
  const found = { ...ALL, mesa: undefined, vendorDriver: true, vulkanLoader: false };
  assert.deepEqual(commands({ ...DEBIAN_12, found }).commands, [
    "apt-get update",
    `${INSTALL} libvulkan1`,
  ]);
});

function run(purpose: string, path: string) {
  return spawnSync(process.execPath, ["deploy/system-packages.ts", "--for", purpose], {
    cwd: join(import.meta.dirname, "../.."),
    encoding: "utf8",
    env: { PATH: path, SWITCHYARD_NO_INSTALL: "1" },
  });
}

test("forbidden to install and without redis-server, start goes on saying so, test fails", () => {
  const started = run("start", "/nowhere");
  assert.equal(started.status, 0, started.stderr);
  assert.match(started.stderr, /missing: .*redis/);
  assert.match(started.stderr, /statistics stay in memory/);
  const tested = run("test", "/nowhere");
  assert.equal(tested.status, 1, tested.stderr);
  assert.match(tested.stderr, /the tests need all of it/);
});
