import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type IncomingHttpHeaders } from "node:http2";
import { it } from "node:test";

import { Server, type ServerWritableStream, status } from "@grpc/grpc-js";

import { waitFor } from "../../bench/rig/wait-for.ts";
import { expertServiceDefinition } from "../../core/expert-stream.ts";
import type { PackedExpert } from "../../core/expert-format.ts";
import { inTime } from "../../core/gpu/deadline.ts";
import { bindServer, serverOptions } from "../../core/platform/grpc.ts";
import { createFetchExpert } from "../../expert-service/fetch-expert.ts";
import { ExpertFormat } from "../../proto/gen/switchyard/v1/cluster.ts";
import { FetchExpertRequest } from "../../proto/gen/switchyard/v1/expert.ts";

it("peers that stop reading lose their places, keep no chunk but the one on its way, and are told so", async (t) => {
  // Each more than a connection takes unread.
  const matrix = { weights: new Uint32Array(2 ** 18), scales: new Uint32Array(0) };
  const expert: PackedExpert = { format: "f32", gate: matrix, up: matrix, down: matrix };
  const server = new Server(serverOptions);
  const read = async () => expert;
  const fetchExpert = createFetchExpert({ modelHash: "m", read, stallMs: 300 });
  const calls: ServerWritableStream<unknown, unknown>[] = [];
  server.addService(expertServiceDefinition, {
    connect: () => {},
    fetchExpert: (call: Parameters<typeof fetchExpert>[0]) => {
      calls.push(call);
      fetchExpert(call);
    },
  });
  const address = `127.0.0.1:${await bindServer(server, "127.0.0.1:0")}`;
  t.after(() => server.forceShutdown());
  const format = ExpertFormat.EXPERT_FORMAT_F32;
  const message = FetchExpertRequest.encode({ modelHash: "m", layer: 1, expertId: 2, format });
  const body = message.finish();
  const header = Buffer.alloc(5);
  header.writeUInt32BE(body.length, 1);
  /** Below gRPC, whose client reads on for a while when nobody wants it to. */
  const fetch = () => {
    const session = connect(`http://${address}`);
    t.after(() => session.destroy());
    const { path } = expertServiceDefinition.fetchExpert;
    const call = session.request({
      ":path": path,
      ":method": "POST",
      "content-type": "application/grpc",
      te: "trailers",
    });
    call.end(Buffer.concat([header, body]));
    return call;
  };
  /** Status and details of a call that is read to its end. */
  const outcome = async (call: ReturnType<typeof fetch>) => {
    const told = new Promise<IncomingHttpHeaders>((resolve) => {
      const look = (headers: IncomingHttpHeaders) => {
        if (headers["grpc-status"] !== undefined) resolve(headers);
      };
      call.on("response", look).on("trailers", look);
    });
    call.resume();
    const trailers = await inTime("the end of a call", told, 5_000);
    return [Number(trailers["grpc-status"]), decodeURI(String(trailers["grpc-message"]))];
  };
  const idle = Array.from({ length: 4 }, fetch);
  await Promise.all(idle.map((call) => once(call, "response")));
  assert.equal((await outcome(fetch()))[0], status.RESOURCE_EXHAUSTED);
  const isServed = async () => (await outcome(fetch()))[0] === status.OK;
  await waitFor("a free place", isServed);
  await waitFor("the end of all calls", () => calls.every((call) => call.writableEnded));
  for (const call of calls) assert.ok(call.writableLength <= 1, `${call.writableLength} chunks`);
  assert.deepEqual(await outcome(idle[0]), [
    status.DEADLINE_EXCEEDED,
    "layer 1 expert 2: the peer took nothing for 300 ms",
  ]);
});
