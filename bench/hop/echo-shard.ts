/** A process that answers every dispatch at once with zero sums of the right size: the wire of a hop with nothing behind it. */

import { Server } from "@grpc/grpc-js";

import { expertServiceDefinition } from "../../core/expert-stream.ts";
import { bindServer, serverOptions } from "../../core/platform/grpc.ts";
import type { ExpertServiceServer, RouterMessage } from "../../proto/gen/switchyard/v1/expert.ts";

const echo: Pick<ExpertServiceServer, "connect"> = {
  connect(call) {
    call.on("data", (message: RouterMessage) => {
      if (message.kind?.$case !== "dispatch") return;
      const { dispatchId, numRows, hiddenSize } = message.kind.value;
      const value = {
        dispatchId,
        numRows,
        sums: new Uint8Array(numRows * hiddenSize * 4),
        crc32: 0,
        queueUs: 0,
        computeUs: 0,
      };
      call.write({ kind: { $case: "partialSum", value } });
    });
    call.on("end", () => call.end());
    call.on("error", () => undefined);
  },
};

const server = new Server(serverOptions);
server.addService(expertServiceDefinition, echo);
const port = await bindServer(server, "127.0.0.1:0");
process.on("disconnect", () => process.exit(0));
process.send?.({ ready: true, port });
