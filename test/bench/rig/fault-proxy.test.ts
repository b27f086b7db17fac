import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { after, before, describe, test } from "node:test";

import { startFaultProxy, type FaultProxy } from "../../../bench/rig/fault-proxy.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

/** Sends bytes and waits until as many came back. */
async function echo(socket: Socket, bytes: Buffer): Promise<Buffer> {
  const parts: Buffer[] = [];
  const collect = (part: Buffer) => void parts.push(part);
  socket.on("data", collect);
  socket.write(bytes);
  await waitFor("the echo", () => Buffer.concat(parts).length >= bytes.length, 5000);
  socket.off("data", collect);
  return Buffer.concat(parts);
}

describe("a fault proxy before a server that echoes", () => {
  let server: Server;
  let proxy: FaultProxy;
  let client: Socket;
  let received = 0;
  before(async () => {
    server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.on("data", (bytes) => {
        received += bytes.length;
        socket.write(bytes);
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    proxy = await startFaultProxy((server.address() as AddressInfo).port, 1);
    client = connect(proxy.port, "127.0.0.1");
    client.on("error", () => undefined);
    await once(client, "connect");
  });
  after(async () => {
    client?.destroy();
    await proxy?.close();
    server?.close();
  });

  const message = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 251));
  const timed = async (bytes: Buffer) => {
    const startedAt = performance.now();
    assert.deepEqual(await echo(client, bytes), bytes);
    return performance.now() - startedAt;
  };

  test("hands all bytes on as they came", async () => {
    await timed(message);
  });

  test("delays both directions while told so", async () => {
    proxy.setFaults({ delayMs: 100 });
    assert.ok((await timed(message)) >= 200);
    proxy.setFaults({ delayMs: 100 }, ["up"]);
    proxy.setFaults({}, ["down"]);
    const oneWay = await timed(message);
    assert.ok(oneWay >= 100 && oneWay < 200, `${oneWay} ms`);
    proxy.setFaults({});
  });

  test("lets no more through than its bandwidth", async () => {
    proxy.setFaults({ bytesPerSecond: 20_000 }, ["up"]);
    assert.ok((await timed(message)) >= 250);
    proxy.setFaults({});
  });

  test("holds what comes while it is stalled, and passes it afterwards", async () => {
    proxy.setFaults({ stalled: true }, ["down"]);
    const before = received;
    const bytesRead = client.bytesRead;
    const echoed = echo(client, message);
    await waitFor("the message to arrive", () => received - before === message.length);
    assert.equal(client.bytesRead, bytesRead);
    proxy.setFaults({});
    assert.deepEqual(await echoed, message);
  });

  test("flips single bits, about as often as told", async () => {
    proxy.setFaults({ corruption: { where: "anywhere", everyBytes: 500 } }, ["up"]);
    const before = proxy.flips();
    const answer = await echo(client, message);
    proxy.setFaults({});
    const changed = message.filter((byte, at) => byte !== answer[at]).length;
    assert.equal(changed, proxy.flips() - before);
    assert.ok(changed >= 3 && changed <= 40, `${changed} of ${message.length} bytes`);
    await timed(message);
  });

  test("resets connections, and refuses them while it has no target", async () => {
    assert.equal(proxy.reset(), 1);
    await waitFor("the reset", () => client.destroyed);
    proxy.setTarget(undefined);
    const refused = connect(proxy.port, "127.0.0.1");
    refused.on("error", () => undefined);
    await waitFor("the refusal", () => refused.destroyed);
    proxy.setTarget((server.address() as AddressInfo).port);
    client = connect(proxy.port, "127.0.0.1");
    await timed(message);
  });
});
