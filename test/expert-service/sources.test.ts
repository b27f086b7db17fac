import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { Server } from "@grpc/grpc-js";

import { expertServiceDefinition } from "../../core/expert-stream.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { bindServer, serverOptions } from "../../core/platform/grpc.ts";
import { expertBytes, packExpert } from "../../core/weights.ts";
import type { PackedExpert } from "../../core/expert-format.ts";
import { ExpertFormat } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { ExpertChunk } from "../../proto/gen/switchyard/v1/expert.ts";
import { ExpertSources, type ExpertSourcesOptions } from "../../expert-service/expert-sources.ts";
import { createFetchExpert } from "../../expert-service/fetch-expert.ts";
import { HostCache } from "../../expert-service/host-cache.ts";
import { PeerError, PeerExperts, type WantedExpert } from "../../expert-service/peer-experts.ts";
import {
  failed,
  measured,
  orderSources,
  type SourceRecord,
} from "../../expert-service/source-choice.ts";
import { greeted, later, place, sumsOf } from "../support/placed-shard.ts";
import { placedConnection, placementOf } from "../../bench/rig/shard-connection.ts";
import { silentLogger, startTestShard, type TestShard } from "../support/shards.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { EXPERT_BYTES, NUM_LAYERS } from "../support/tiny-experts.ts";

const never = new AbortController().signal;

describe("the source of an expert", () => {
  it("is the fastest by its latest measurements, an unmeasured one before it, one that failed after it", () => {
    const records: Record<string, SourceRecord> = {
      disk: measured({}, 1, 100, 1000),
      near: measured(measured({}, 0.1, 100, 1000), 0.2, 100, 2000),
      far: measured({}, 3, 100, 1000),
    };
    const order = (now: number) =>
      orderSources(["far", "disk", "near", "new"], (source) => records[source] ?? {}, now);
    assert.deepEqual(order(3000), ["new", "near", "disk", "far"]);
    records.near = failed(records.near, 3000);
    assert.deepEqual(order(3001), ["new", "disk", "far", "near"]);
    assert.deepEqual(order(14_000), ["new", "near", "disk", "far"]);
    // Old measurements say nothing.
    assert.deepEqual(order(61_500), ["far", "disk", "new", "near"]);
  });
});

describe("host memory", () => {
  it("keeps what left last within its bound, and gives each expert once", () => {
    const sizes = {
      hiddenSize: 8,
      expertIntermediateSize: 8,
      activation: { kind: "silu" },
    } as const;
    const all = { ...sizes, expertBias: false };
    const expert = (value: number): PackedExpert => {
      const matrix = {
        weights: new Uint32Array(64).fill(value),
        scales: new Uint32Array(0),
      };
      return { format: "f32", gate: matrix, up: matrix, down: matrix };
    };
    const bytes = expertBytes(all, "f32");
    const cache = new HostCache(all, 2 * bytes + 1);
    for (const id of [1, 2, 3]) cache.put(0, id, expert(id));
    assert.equal(cache.bytes, 2 * bytes);
    const take = (id: number) => cache.take({ layer: 0, expert: id, format: "f32" });
    assert.equal(take(1), undefined);
    assert.deepEqual(take(3), expert(3));
    assert.equal(take(3), undefined);
    assert.equal(cache.bytes, bytes);
    const none = new HostCache(all, bytes - 1);
    none.put(0, 1, expert(1));
    assert.equal(none.bytes, 0);
  });
});

describe("a shard as a peer", () => {
  let holder: TestShard;
  let peers: PeerExperts;
  before(async () => {
    holder = await startTestShard();
    const connection = await placedConnection(holder.address, holder.checkpoint, [1, 2]);
    connection.close();
    const { modelHash, config } = holder.checkpoint;
    peers = new PeerExperts({ modelHash, sizes: config });
  });
  after(async () => {
    peers.rest();
    await holder.close();
  });
  /** The sources of a shard whose checkpoint fails. */
  const withoutDisk = (options: Pick<ExpertSourcesOptions, "onExpert" | "waitMs">) => {
    const { config } = holder.checkpoint;
    return new ExpertSources({
      sizes: config,
      readExpert: () => Promise.reject(new Error("the disk is gone")),
      cache: new HostCache(config, 0),
      peers,
      ownAddress: () => undefined,
      logger: silentLogger,
      now: () => performance.now(),
      ...options,
    });
  };

  it("gives a resident expert as it is packed, and nothing else", async () => {
    const { config } = holder.checkpoint;
    const stored = await readExpert(holder.checkpoint, 1, 2);
    const fetched = await peers.fetch(
      holder.address,
      { layer: 1, expert: 2, format: "f32" },
      never,
    );
    assert.deepEqual(fetched, packExpert("test", stored, config, "f32"));
    const refusals: [Partial<WantedExpert>, RegExp][] = [
      [{ expert: 3 }, /peer 127\.0\.0\.1:\d+, layer 1 expert 3 in f32: .* is not resident/],
      [{ format: "int8" }, /expert 2 in int8 is not resident/],
      [{ layer: 9 }, /layer 9 expert 2 in f32 is not resident/],
    ];
    for (const [change, text] of refusals) {
      const wanted: WantedExpert = { layer: 1, expert: 2, format: "f32", ...change };
      await assert.rejects(peers.fetch(holder.address, wanted, never), (error) => {
        assert.ok(error instanceof PeerError);
        assert.match(error.message, text);
        return true;
      });
    }
    const strangers = new PeerExperts({ modelHash: "other", sizes: config });
    const wanted: WantedExpert = { layer: 1, expert: 2, format: "f32" };
    await assert.rejects(strangers.fetch(holder.address, wanted, never), /model_hash/);
    strangers.rest();
  });

  it("saves another one its checkpoint; the sums are the same, bit by bit", async () => {
    const shard = await startTestShard({ rank: 1 });
    const layers = [0, 1, 2].map((layer) => ({ layer, expertIds: [1, 2] }));
    const value = placementOf(shard.checkpoint, [1, 2], {
      peers: [{ address: holder.address, layers }],
    });
    const read = shard.checkpoint.bytesRead();
    const connection = await greeted(shard);
    const ack = await place(connection, value);
    const all = NUM_LAYERS * 2 * (EXPERT_BYTES / 2);
    assert.ok(ack.checkpointBytesRead - read < all, "some came from the peer");
    const other = await placedConnection(holder.address, holder.checkpoint, [1, 2]);
    assert.deepEqual(
      await sumsOf(connection, 1, [1, 2, 65535, 65535]),
      await sumsOf(other, 1, [1, 2, 65535, 65535]),
    );
    // It is gone: the checkpoint has everything too.
    const gone = [{ address: "127.0.0.1:1", layers: [{ layer: 0, expertIds: [5, 6] }] }];
    const next = { epoch: 2, oldestLiveEpoch: 1, peers: gone };
    await place(connection, placementOf(shard.checkpoint, [5, 6], next));
    await sumsOf(connection, 2, [5, 6, 65535, 65535]);
    connection.close();
    other.close();
    await shard.close();
  });

  it("gives what lies on its GPU to the GPU of one without a disk; the sums are those of experts from disk, bit by bit", async () => {
    const options = { device: "webgpu", experts: "int4-g32" } as const;
    const [giver, taker] = await Promise.all([
      startTestShard(options),
      startTestShard({ ...options, rank: 1 }),
    ]);
    const experts = [1, 2, 5];
    const change = { expertFormat: ExpertFormat.EXPERT_FORMAT_INT4_G32 };
    const hello = { experts: "int4-g32" };
    const from = await placedConnection(giver.address, giver.checkpoint, experts, change, hello);
    await taker.checkpoint.close();
    const layers = moeLayers(giver.checkpoint.config).map((layer) => ({
      layer,
      expertIds: experts,
    }));
    const peers = [{ address: giver.address, layers }];
    const to = await placedConnection(
      taker.address,
      taker.checkpoint,
      experts,
      { ...change, peers },
      hello,
    );
    for (const { layer } of layers) {
      const sums = await sumsOf(to, 1, [5, 1, 2, 65535], layer);
      assert.deepEqual(sums, await sumsOf(from, 1, [5, 1, 2, 65535], layer));
      assert.ok(sums.some((byte) => byte !== 0));
    }
    for (const connection of [from, to]) connection.close();
    await Promise.all([giver.close(), taker.close()]);
  });

  it("takes the place of a checkpoint that fails; where all fail, the checkpoint's reason is told", async () => {
    const origins: string[] = [];
    const sources = withoutDisk({ onExpert: (source) => origins.push(source) });
    const wanted: WantedExpert = { layer: 1, expert: 2, format: "f32" };
    const get = (holders: readonly string[]) =>
      sources.get(wanted, holders, never, () => undefined);
    await get([holder.address]);
    await get(["127.0.0.1:1", holder.address]);
    assert.deepEqual(origins, ["peer", "peer"]);
    await assert.rejects(get([]), /the disk is gone/);
    await assert.rejects(get(["127.0.0.1:1"]), /the disk is gone/);
  });

  it("that is busy is waited for where the checkpoint fails, as long as it lives and the wait has not ended", async () => {
    const { modelHash, config } = holder.checkpoint;
    const packed = packExpert("test", await readExpert(holder.checkpoint, 1, 2), config, "f32");
    let giving = Promise.withResolvers<PackedExpert>();
    let begun = 0;
    const server = new Server(serverOptions);
    const read = () => (begun++, giving.promise);
    const fetchExpert = createFetchExpert({ modelHash, read });
    server.addService(expertServiceDefinition, { connect: () => {}, fetchExpert });
    const address = `127.0.0.1:${await bindServer(server, "127.0.0.1:0")}`;
    const sourcesOf = (waitMs?: number) => {
      const sources = withoutDisk({ waitMs });
      return (signal = never) =>
        sources.get({ layer: 1, expert: 2, format: "f32" }, [address], signal, () => undefined);
    };
    // Two shards take all that it gives at a time; a third is refused, and a third lane of its own has to wait too.
    const shards = [sourcesOf(), sourcesOf(), sourcesOf()];
    const wanted = shards.flatMap((get) => [get(), get(), get()]);
    await waitFor("the first ones", () => begun === 4);
    const stopped = new AbortController();
    const aborted = assert.rejects(sourcesOf()(stopped.signal), /no longer wanted/);
    await assert.rejects(
      sourcesOf(60)(),
      /^PeerError: the disk is gone; 127\.0\.0\.1:\d+ did not give it within \d+ ms$/,
    );
    stopped.abort(new Error("no longer wanted"));
    await aborted;
    assert.equal(begun, 4);
    giving.resolve(packed);
    for (const got of await Promise.all(wanted)) assert.deepEqual(got, packed);
    giving = Promise.withResolvers();
    const last = [...shards, sourcesOf()].map((get) => assert.rejects(get(), /the disk is gone/));
    server.forceShutdown();
    await Promise.all(last);
    peers.rest();
  });

  it("that sends other bytes than it states, or another expert, is not believed", async () => {
    const { modelHash, config } = holder.checkpoint;
    const stored = await readExpert(holder.checkpoint, 1, 2);
    const packed = packExpert("test", stored, config, "f32");
    const give = createFetchExpert({ modelHash, read: async () => packed });
    let spoil: (chunk: ExpertChunk) => void = () => {};
    const server = new Server(serverOptions);
    server.addService(expertServiceDefinition, {
      connect: () => {},
      fetchExpert: (call: Parameters<typeof give>[0]) => {
        const write = call.write.bind(call);
        call.write = ((chunk: ExpertChunk, onTaken: () => void) => {
          const copy = { ...chunk, data: chunk.data.slice() };
          spoil(copy);
          return write(copy, onTaken);
        }) as typeof call.write;
        give(call);
      },
    });
    const address = `127.0.0.1:${await bindServer(server, "127.0.0.1:0")}`;
    const fetch = () => peers.fetch(address, { layer: 1, expert: 2, format: "f32" }, never);
    assert.deepEqual(await fetch(), packed);
    spoil = (chunk) => (chunk.data[5] ^= 1);
    await assert.rejects(fetch(), /crc32 is [0-9a-f]+, it states [0-9a-f]+/);
    spoil = (chunk) => (chunk.totalBytes -= 4);
    await assert.rejects(fetch(), new RegExp(`${EXPERT_BYTES - 4} bytes in all`));
    spoil = (chunk) => (chunk.data = chunk.data.subarray(4));
    await assert.rejects(fetch(), new RegExp(`bytes, expected ${EXPERT_BYTES}`));
    spoil = () => {};
    // The request's own name is in the checksum: another expert of the right size does not pass for it.
    const swapped = new PeerExperts({ modelHash, sizes: config });
    const mangled = createFetchExpert({
      modelHash,
      read: async () => packed,
    });
    server.removeService(expertServiceDefinition);
    server.addService(expertServiceDefinition, {
      connect: () => {},
      fetchExpert: (call: Parameters<typeof give>[0]) => {
        call.request = { ...call.request, expertId: 7 };
        mangled(call);
      },
    });
    const wanted: WantedExpert = { layer: 1, expert: 2, format: "f32" };
    await assert.rejects(swapped.fetch(address, wanted, never), /crc32 is/);
    swapped.rest();
    peers.rest();
    server.forceShutdown();
  });
});

describe("a shard with room in host memory", () => {
  it("has an expert back without its checkpoint", async () => {
    const shard = await startTestShard({ hostCacheBytes: 100 * EXPERT_BYTES });
    const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
    const expected = await sumsOf(connection, 1, [1, 2, 65535, 65535]);
    await place(connection, later(shard.checkpoint, 2, [5], 2));
    const { checkpointBytesRead: read } = await place(
      connection,
      later(shard.checkpoint, 3, [1, 2], 3),
    );
    assert.deepEqual(await sumsOf(connection, 3, [1, 2, 65535, 65535]), expected);
    const again = await place(connection, later(shard.checkpoint, 4, [1, 2, 5], 3));
    assert.equal(again.checkpointBytesRead, read, "5 was kept too");
    await waitFor("the word", () => connection.status()?.epochs.join() === "3,4");
    connection.close();
    await shard.close();
  });
});
