import assert from "node:assert/strict";
import { it } from "node:test";

import { Server, type ServerDuplexStream } from "@grpc/grpc-js";

import { startFaultProxy } from "../../../../bench/rig/fault-proxy.ts";
import { helloFor, placementOf } from "../../../../bench/rig/shard-connection.ts";
import { waitFor } from "../../../../bench/rig/wait-for.ts";
import { helloCrc } from "../../../../core/handshake.ts";
import { bindServer, serverOptions, stopServer } from "../../../../core/platform/grpc.ts";
import {
  ExpertServiceService,
  type RouterMessage,
  ShardHello,
  type ShardMessage,
} from "../../../../proto/gen/switchyard/v1/expert.ts";
import { Member } from "../../../../router-service/cluster/member.ts";
import { ShardClient } from "../../../../router-service/cluster/shards/shard-client.ts";
import { silentLogger, startTestShard } from "../../../support/shards.ts";

it("a stream on which a flipped length holds back all that follows is ended, and the placement given on a new one", async (t) => {
  const shard = await startTestShard();
  const proxy = await startFaultProxy(shard.shard.port, 1);
  const placement = (epoch: number) => placementOf(shard.checkpoint, [1, 2], { epoch });
  let placements = [placement(1)];
  const client = new ShardClient({
    address: `127.0.0.1:${proxy.port}`,
    hello: helloFor(shard.checkpoint),
    logger: silentLogger,
    onHello: () => placements,
    onStatus: () => {},
    onChange: () => {},
  });
  t.after(async () => {
    await client.close();
    await shard.close();
    await proxy.close();
  });
  const holds = (epoch: number) => {
    const { state } = client;
    return state.kind === "connected" && state.epochs.has(epoch) && state.stream;
  };
  const first = await waitFor("placement 1", () => holds(1) || undefined);
  proxy.setFaults({ corruption: { where: "length", everyBytes: 1 } }, ["up"]);
  const lost = client.place(placement(2));
  placements = [placement(2)];
  await waitFor("a flipped length", () => proxy.flips() > 0);
  proxy.setFaults({});
  await assert.rejects(lost, /the shard has read 2 of 3 messages, no more for \d+ ms/);
  assert.notEqual(await waitFor("placement 2", () => holds(2) || undefined), first);
});

it("a shard of which nothing is heard after its hello is given up", async (t) => {
  const server = new Server(serverOptions);
  const hello = ShardHello.create({ rank: 1, incarnation: "1" });
  hello.crc32 = helloCrc(hello);
  server.addService(ExpertServiceService, {
    connect: (call: ServerDuplexStream<RouterMessage, ShardMessage>) => {
      call.on("data", ({ kind }: RouterMessage) => {
        if (kind?.$case === "hello") call.write({ kind: { $case: "hello", value: hello } });
      });
      call.on("error", () => {});
    },
  });
  const reasons: string[] = [];
  const member = new Member({
    address: `127.0.0.1:${await bindServer(server, "127.0.0.1:0")}`,
    hello: { protocolVersion: 1, modelHash: "aa", weights: "f32", experts: "auto", routerId: "t" },
    logger: silentLogger,
    judge: () => ({ placements: [], withheld: undefined }),
    onEvent: (one, event) => event === "lost" && reasons.push(one.reasonAgainst(1)),
  });
  t.after(async () => {
    await member.close();
    await stopServer(server, 100);
  });
  await waitFor("the shard to be given up", () => {
    member.checkSilence();
    return reasons.length > 0;
  });
  assert.match(reasons[0], /^no message for 3\d{3} ms$/);
});
