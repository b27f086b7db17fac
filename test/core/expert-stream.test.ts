import assert from "node:assert/strict";
import { test } from "node:test";

import { expertServiceDefinition } from "../../core/expert-stream.ts";
import { ExpertChunk } from "../../proto/gen/switchyard/v1/expert.ts";

const { responseSerialize } = expertServiceDefinition.fetchExpert;

for (const length of [0, 1, 127, 128, 16_384, 2 ** 20]) {
  test(`a chunk of ${length} bytes of an expert is written as its definition says, in memory of its length`, () => {
    const data = Uint8Array.from({ length }, (_, at) => at * 7);
    for (const rest of [
      { totalBytes: 0, crc32: 0 },
      { totalBytes: 2 ** 33, crc32: 0xdeadbeef },
    ]) {
      const chunk = { data, ...rest };
      const bytes = responseSerialize(chunk);
      assert.deepEqual(bytes, Buffer.from(ExpertChunk.encode(chunk).finish()));
      // Short ones lie in memory that others share.
      if (length === 2 ** 20) assert.equal(bytes.buffer.byteLength, bytes.length);
    }
  });
}
