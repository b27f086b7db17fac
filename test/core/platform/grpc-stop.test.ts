import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { test } from "node:test";

import { Server } from "@grpc/grpc-js";

import { bindServer, stopServer } from "../../../core/platform/grpc.ts";

test("a server stops within its grace, even where a peer neither answers nor closes its end", async (t) => {
  const server = new Server();
  const port = await bindServer(server, "127.0.0.1:0");
  const peer = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  t.after(() => peer.destroy());
  // The preface and empty settings of HTTP/2.
  const settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
  peer.write(
    Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Buffer.from(settings)]),
  );
  await once(peer, "data");
  const startedAt = performance.now();
  await stopServer(server, 100);
  assert.ok(performance.now() - startedAt < 3000);
});
