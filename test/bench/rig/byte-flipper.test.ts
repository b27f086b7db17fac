import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../../../core/random.ts";
import { ByteFlipper } from "../../../bench/rig/byte-flipper.ts";

/** A frame of HTTP/2 with an empty payload of this length. */
function frame(type: number, length: number): Buffer {
  const bytes = Buffer.alloc(9 + length);
  bytes.writeUIntBE(length, 0, 3);
  bytes[3] = type;
  return bytes;
}

/** Where flips hit a stream of frames that is cut anyhow: the length of the frame's payload, and the byte of it. */
function hits(where: "payload" | "length"): { readonly length: number; readonly byte: number }[] {
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const frames = Array.from({ length: 200 }, (_, i) =>
    i % 3 === 0 ? frame(1, 300) : frame(0, i % 3 === 1 ? 150 : 1000),
  );
  const stream = Buffer.concat([preface, ...frames]);
  const passed = Buffer.from(stream);
  const random = seededRandom(3);
  let flips = 0;
  const flipper = new ByteFlipper(true, random, () => flips++);
  for (let from = 0; from < passed.length;) {
    const to = Math.min(passed.length, from + 1 + Math.floor(random() * 400));
    flipper.flip(passed.subarray(from, to), { where, everyBytes: 2000 });
    from = to;
  }
  const changed = [...passed.keys()].filter((at) => passed[at] !== stream[at]);
  assert.equal(changed.length, flips);
  assert.ok(flips > 10, `${flips} flips`);
  let at = preface.length;
  const middles = frames.map((one) => {
    const begin = at + 9;
    at += one.length;
    return { begin, length: one.length - 9 };
  });
  return changed.map((place) => {
    const hit = middles.find(({ begin, length }) => place >= begin && place < begin + length);
    assert.ok(hit !== undefined, `byte ${place} is in no payload`);
    return { length: hit.length, byte: place - hit.begin };
  });
}

test("flips in the payload hit the middle of large DATA frames only, however the stream is cut", () => {
  for (const { length, byte } of hits("payload")) {
    assert.equal(length, 1000);
    assert.ok(byte >= 250 && byte <= 750, `byte ${byte} of its frame`);
  }
});

test("flips in the length hit the third byte of DATA frames only, however the stream is cut", () => {
  const hit = hits("length");
  assert.deepEqual(new Set(hit.map(({ byte }) => byte)), new Set([2]));
  assert.deepEqual(new Set(hit.map(({ length }) => length)), new Set([150, 1000]));
});
