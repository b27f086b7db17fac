import assert from "node:assert/strict";
import { it } from "node:test";

import { startFaultProxy } from "../../../../bench/rig/fault-proxy.ts";
import { helloFor, placementOf } from "../../../../bench/rig/shard-connection.ts";
import { waitFor } from "../../../../bench/rig/wait-for.ts";
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
