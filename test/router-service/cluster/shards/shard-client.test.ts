import assert from "node:assert/strict";
import { it } from "node:test";

import { helloFor, placementOf } from "../../../../bench/rig/shard-connection.ts";
import { waitFor } from "../../../../bench/rig/wait-for.ts";
import { ShardClient } from "../../../../router-service/cluster/shards/shard-client.ts";
import { silentLogger, startTestShard } from "../../../support/shards.ts";

it("a shard that says for several dispatches at once that it lacks an epoch is given it once, on its stream", async (t) => {
  const shard = await startTestShard();
  const placement = placementOf(shard.checkpoint, [1, 2]);
  const client = new ShardClient({
    address: shard.address,
    hello: helloFor(shard.checkpoint),
    logger: silentLogger,
    onHello: () => [placement],
    onStatus: () => {},
    onChange: () => {},
  });
  t.after(async () => {
    await client.close();
    await shard.close();
  });
  const streamWithIt = () => {
    const { state } = client;
    return state.kind === "connected" && state.epochs.has(1) ? state.stream : undefined;
  };
  const stream = await waitFor("the placement", streamWithIt);
  for (let i = 0; i < 3; i++) client.placeAgain(placement);
  assert.equal(streamWithIt(), undefined);
  assert.equal(await waitFor("the placement again", streamWithIt), stream);
  // Answered after all that the shard has to say of the first.
  await client.place(placementOf(shard.checkpoint, [1, 2], { epoch: 2 }));
  assert.equal(streamWithIt(), stream);
  // What is released is known no more: it would have to be sent, and is too late.
  client.release(2);
  await assert.rejects(client.place(placement), /epoch 1, the router's last one is of epoch 2/);
});
