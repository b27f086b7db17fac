import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { test } from "node:test";

import { requireFreePorts } from "../../../core/platform/listening.ts";

test("a port that is taken is named with its flag before anything is started, and free ones stay free", async (t) => {
  const other = createServer().listen(0, "127.0.0.1");
  t.after(() => other.close());
  await once(other, "listening");
  const { port } = other.address() as AddressInfo;
  const said = {
    name: "ListenError",
    message: new RegExp(
      `127\\.0\\.0\\.1:${port}: another program .* with --grpc-port, .*EADDRINUSE`,
    ),
  };
  const taken = { "--http-port": 0, "--grpc-port": port };
  await assert.rejects(requireFreePorts("127.0.0.1", taken), said);

  other.close();
  await once(other, "close");
  const free = { "--http-port": port, "--grpc-port": 0 };
  await requireFreePorts("127.0.0.1", free);
  await requireFreePorts("127.0.0.1", free);
  const twice = { "--http-port": port, "--grpc-port": port };
  await assert.rejects(requireFreePorts("127.0.0.1", twice), said);
});
