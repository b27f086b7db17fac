import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { test, type TestContext } from "node:test";

import { Client, connectivityState } from "@grpc/grpc-js";

import { waitFor } from "../../../bench/rig/wait-for.ts";
import { channelCredentials, channelOptions } from "../../../core/platform/grpc.ts";

/** Empty settings of HTTP/2: a client that has them is connected. */
const SETTINGS = Uint8Array.of(0, 0, 0, 4, 0, 0, 0, 0, 0);

/** A server that accepts connections on a port, and says no more than its greeting. */
async function listen(t: TestContext, port: number, greeting?: Uint8Array) {
  const sockets = new Set<Socket>();
  let accepted = 0;
  const server = createServer((socket) => {
    accepted++;
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    socket.resume();
    if (greeting !== undefined) socket.write(greeting);
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const close = () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  t.after(close);
  const { port: bound } = server.address() as AddressInfo;
  return { port: bound, close, accepted: () => accepted, open: () => sockets.size };
}

/** A client that begins to connect and, where that fails, tries again after `backoffMs`. */
function connectingClient(port: number, backoffMs: number): Client {
  const options = { ...channelOptions, "grpc.initial_reconnect_backoff_ms": backoffMs };
  const client = new Client(`127.0.0.1:${port}`, channelCredentials(), options);
  client.getChannel().getConnectivityState(true);
  return client;
}

const stateOf = (client: Client) => client.getChannel().getConnectivityState(false);

test("a client that is closed when it could not connect does not connect once the server is there", async (t) => {
  const { port, close } = await listen(t, 0);
  close();
  const closed = connectingClient(port, 100);
  const open = connectingClient(port, 400);
  t.after(() => open.close());
  for (const client of [closed, open]) {
    const failed = () => stateOf(client) === connectivityState.TRANSIENT_FAILURE;
    await waitFor("an attempt to fail", failed);
  }
  closed.close();
  const server = await listen(t, port, SETTINGS);
  // Its pause is far longer: the other one would have connected before.
  await waitFor("the open client", () => stateOf(open) === connectivityState.READY);
  assert.equal(server.accepted(), 1);
});

test("a client that is closed leaves no connection to a server that never said a word", async (t) => {
  const server = await listen(t, 0);
  const client = connectingClient(server.port, 100);
  await waitFor("a connection", () => server.open() === 1);
  client.close();
  await waitFor("the connection to close", () => server.open() === 0, 2_000);
});

test("a client that is closed while its socket connects leaves no connection to a server that says nothing", async (t) => {
  const server = await listen(t, 0);
  const client = connectingClient(server.port, 100);
  // The address is known after this; between ticks nothing comes of a socket.
  await new Promise((resolve) => setImmediate(resolve));
  const tick = () => new Promise<void>((resolve) => process.nextTick(resolve));
  for (let ticks = 0; ticks < 100; ticks++) await tick();
  assert.equal(stateOf(client), connectivityState.CONNECTING);
  client.close();
  await waitFor("the connection", () => server.accepted() === 1);
  await waitFor("the connection to close", () => server.open() === 0, 2_000);
});

test("a client that is closed in the turn in which it begins to connect leaves no connection", async (t) => {
  const server = await listen(t, 0, SETTINGS);
  connectingClient(server.port, 100).close();
  const open = connectingClient(server.port, 100);
  t.after(() => open.close());
  // It was made after the other one: what that one connects by was connected before.
  await waitFor("the open client", () => stateOf(open) === connectivityState.READY);
  await waitFor("the only connection to be its", () => server.open() === 1, 2_000);
});
