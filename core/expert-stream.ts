/** ExpertService's methods as both ends register them. */

import { BinaryWriter } from "@bufbuild/protobuf/wire";

import {
  ExpertChunk,
  ExpertServiceService,
  RouterMessage,
  ShardMessage,
} from "../proto/gen/switchyard/v1/expert.ts";

/** Before ExpertChunk.data: field 1, of a length that follows. */
const DATA_TAG = (1 << 3) | 2;

const NOTHING = new Uint8Array(0);

/** ExpertService, its messages written without the copy that the generated definition makes of each. */
export const expertServiceDefinition = {
  connect: {
    ...ExpertServiceService.connect,
    requestSerialize: (message: RouterMessage) => bufferOf(RouterMessage.encode(message).finish()),
    responseSerialize: (message: ShardMessage) => bufferOf(ShardMessage.encode(message).finish()),
  },
  fetchExpert: {
    ...ExpertServiceService.fetchExpert,
    responseSerialize: chunkBytes,
  },
} as const;

/** An ExpertChunk's bytes, in memory of their length: a writer's grows by doubling, and is copied once more at the end. */
function chunkBytes({ data, ...rest }: ExpertChunk): Buffer {
  const head = new BinaryWriter().uint32(DATA_TAG).uint32(data.length).finish();
  const tail = ExpertChunk.encode({ ...rest, data: NOTHING }).finish();
  return Buffer.concat(data.length === 0 ? [tail] : [head, data, tail]);
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
