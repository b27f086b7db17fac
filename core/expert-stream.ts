/** ExpertService's methods as both ends register them. */

import {
  ExpertChunk,
  ExpertServiceService,
  RouterMessage,
  ShardMessage,
} from "../proto/gen/switchyard/v1/expert.ts";

/** ExpertService, its messages written without the copy that the generated definition makes of each. */
export const expertServiceDefinition = {
  connect: {
    ...ExpertServiceService.connect,
    requestSerialize: (message: RouterMessage) => bufferOf(RouterMessage.encode(message).finish()),
    responseSerialize: (message: ShardMessage) => bufferOf(ShardMessage.encode(message).finish()),
  },
  fetchExpert: {
    ...ExpertServiceService.fetchExpert,
    responseSerialize: (message: ExpertChunk) => bufferOf(ExpertChunk.encode(message).finish()),
  },
} as const;

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
