import assert from "node:assert/strict";
import { mkdir, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import fc from "fast-check";

import { repeatedKey } from "../../../../core/model/checkpoint/json-keys.ts";
import {
  MAX_HEADER_BYTES,
  parseSafetensorsHeader,
  SafetensorsError,
  SafetensorsFile,
} from "../../../../core/model/checkpoint/safetensors.ts";
import { encodeSafetensors, safetensorsFile, temporaryDir } from "./safetensors-writer.ts";

const tensors = new Map([
  ["a", { dtype: "F32", shape: [2, 3], data: new Uint8Array(24).fill(1) }],
  ["empty", { dtype: "F16", shape: [0, 5], data: new Uint8Array(0) }],
  ["b", { dtype: "BF16", shape: [4], data: new Uint8Array(8).fill(2) }],
  ["scalar", { dtype: "U8", shape: [], data: new Uint8Array(1).fill(3) }],
]);
const valid = encodeSafetensors(tensors);

/** Opens the file, reads every tensor, and returns them by name. */
async function readAll(file: string): Promise<Map<string, Uint8Array>> {
  const opened = await SafetensorsFile.open(file);
  try {
    const read = new Map<string, Uint8Array>();
    for (const [name, { begin, end }] of opened.tensors) {
      assert.ok(begin >= 8 && begin <= end && end <= opened.fileBytes);
      read.set(name, await opened.readBytes(name, 0, end - begin));
      assert.equal(read.get(name)!.length, end - begin);
    }
    assert.ok(opened.bytesRead() <= opened.fileBytes, "no byte is read twice");
    return read;
  } finally {
    await opened.close();
  }
}

test("a well-formed file gives every tensor's dtype, shape and bytes", async (t) => {
  const file = join(await temporaryDir(t), "valid.safetensors");
  await writeFile(file, valid);
  const opened = await SafetensorsFile.open(file);
  t.after(() => opened.close());
  assert.deepEqual([...opened.tensors.keys()].sort(), [...tensors.keys()].sort());
  const headerBytes = 8 + Number(valid.readBigUInt64LE());
  assert.equal(opened.bytesRead(), headerBytes);
  for (const [name, { dtype, shape, data }] of tensors) {
    const entry = opened.tensors.get(name)!;
    assert.deepEqual([entry.dtype, entry.shape], [dtype, shape]);
    assert.deepEqual(await opened.readBytes(name, 0, data.length), data);
  }
  assert.equal(opened.bytesRead(), valid.length);
  assert.deepEqual(await opened.readBytes("b", 2, 3), new Uint8Array(3).fill(2));
});

test("bytes outside of a tensor are never read", async (t) => {
  const file = join(await temporaryDir(t), "valid.safetensors");
  await writeFile(file, valid);
  const opened = await SafetensorsFile.open(file);
  t.after(() => opened.close());
  for (const [offset, length] of [
    [0, 9],
    [8, 1],
    [-1, 2],
    [9, 0],
    [0, -1],
    [Number.NaN, 1],
  ]) {
    await assert.rejects(opened.readBytes("b", offset, length), RangeError);
  }
  await assert.rejects(opened.readBytes("c", 0, 1), SafetensorsError);
});

test("a file that shrinks after it was opened is refused when it is read", async (t) => {
  const file = join(await temporaryDir(t), "shrinking.safetensors");
  await writeFile(file, valid);
  const opened = await SafetensorsFile.open(file);
  t.after(() => opened.close());
  await truncate(file, valid.length - 3);
  await assert.rejects(opened.readBytes("b", 0, 8), SafetensorsError);
});

test("no mutation of a file makes it crash or read outside of its data", async (t) => {
  const file = join(await temporaryDir(t), "mutated.safetensors");
  const position = fc.nat(valid.length - 1);
  const edit = fc.oneof(
    { weight: 3, arbitrary: fc.record({ at: position, byte: fc.nat(255) }) },
    // Characters that mean something to the header.
    {
      weight: 3,
      arbitrary: fc.record({
        at: position,
        byte: fc.constantFrom(...Buffer.from('{}[]",:0123456789-eE\\')),
      }),
    },
    { weight: 1, arbitrary: fc.record({ cut: position }) },
    { weight: 1, arbitrary: fc.record({ grow: fc.integer({ min: 1, max: 9 }) }) },
    { weight: 1, arbitrary: fc.record({ at: position, remove: fc.integer({ min: 1, max: 5 }) }) },
  );
  let refused = 0;
  let read = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 3 }), async (edits) => {
      let bytes = Buffer.from(valid);
      for (const edit of edits) {
        if ("byte" in edit) bytes[edit.at % Math.max(1, bytes.length)] = edit.byte;
        else if ("cut" in edit) bytes = bytes.subarray(0, edit.cut);
        else if ("grow" in edit) bytes = Buffer.concat([bytes, Buffer.alloc(edit.grow)]);
        else {
          const rest = bytes.subarray(edit.at + edit.remove);
          bytes = Buffer.concat([bytes.subarray(0, edit.at), rest]);
        }
      }
      await writeFile(file, bytes);
      try {
        await readAll(file);
        read++;
      } catch (error) {
        if (!(error instanceof SafetensorsError)) throw error;
        assert.ok(error.message.startsWith(file));
        refused++;
      }
    }),
    { numRuns: 600 },
  );
  assert.ok(refused > 100 && read > 20, `${refused} refused, ${read} read`);
});

test("every truncation of a file is refused", async (t) => {
  const file = join(await temporaryDir(t), "truncated.safetensors");
  for (let length = 0; length < valid.length; length++) {
    await writeFile(file, valid.subarray(0, length));
    await assert.rejects(readAll(file), SafetensorsError, `${length} bytes`);
  }
});

test("any header parses to tensors that fill the data once, or is refused", () => {
  const size = fc.oneof(fc.nat(40), fc.constantFrom(-1, 1.5, 2 ** 53, 1e300, "4", null));
  const entry = fc.record(
    {
      dtype: fc.constantFrom("F32", "BF16", "U8", "F4", "X9", 7),
      shape: fc.oneof(fc.array(size, { maxLength: 3 }), size),
      data_offsets: fc.oneof(fc.tuple(size, size), fc.array(size, { maxLength: 3 })),
    },
    { requiredKeys: [] },
  );
  const name = fc.constantFrom("a", "b", "", "__proto__", "__metadata__", "constructor");
  const header = fc.oneof(
    fc.dictionary(name, fc.oneof(entry, fc.jsonValue()), { maxKeys: 4 }),
    fc.jsonValue(),
  );
  fc.assert(
    fc.property(header, fc.nat(64), (header, dataBytes) => {
      const text = Buffer.from(JSON.stringify(header));
      const fileBytes = 8 + text.length + dataBytes;
      try {
        const parsed = parseSafetensorsHeader(text, fileBytes, "f");
        const covered = [...parsed.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
        assert.equal(covered, dataBytes);
      } catch (error) {
        assert.ok(error instanceof SafetensorsError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});

const entry = (dtype: unknown, shape: unknown, begin: unknown, end: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: [begin, end] });

/** What is wrong, the header, bytes of data, and what the message says. */
const refused: [string, string, number, RegExp][] = [
  ["a header that is not JSON", "{", 0, /header is not JSON/],
  ["a header that is a list", "[]", 0, /not a JSON object/],
  ["a header that begins with white space", " {}", 0, /starts with \{/],
  ["a header with invalid UTF-8", '{"\xff":1}', 0, /header is not JSON/],
  [
    "a header nested 200000 levels deep",
    `{"a":${"[".repeat(2e5)}${"]".repeat(2e5)}}`,
    0,
    /tensor "a": entry is .*, expected an object/,
  ],
  [
    "a repeated name",
    `{"a":${entry("U8", [1], 0, 1)},"a":${entry("U8", [1], 0, 1)}}`,
    1,
    /"a" twice/,
  ],
  [
    "a repeated name in another spelling",
    `{"a":${entry("U8", [1], 0, 1)},"\\u0061":${entry("U8", [1], 0, 1)}}`,
    1,
    /"a" twice/,
  ],
  [
    "a repeated field",
    `{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`,
    1,
    /"dtype" twice/,
  ],
  ["metadata that are no strings", '{"__metadata__":{"a":1}}', 0, /__metadata__/],
  ["no dtype", `{"a":{"shape":[1],"data_offsets":[0,1]}}`, 1, /"a": dtype is missing/],
  ["a shape that is no list", `{"a":${entry("U8", 1, 0, 1)}}`, 1, /"a": shape is 1/],
  ["a negative size", `{"a":${entry("U8", [-1], 0, 1)}}`, 1, /"a": shape is \[-1\]/],
  [
    "a size beyond exact integers",
    '{"a":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}}',
    1,
    /"a": shape/,
  ],
  [
    "a product beyond exact integers",
    `{"a":${entry("U8", [2 ** 52, 2 ** 52], 0, 1)}}`,
    1,
    /"a": data_offsets is \[0,1\], expected/,
  ],
  ["a negative offset", `{"a":${entry("U8", [1], -1, 0)}}`, 1, /"a": data_offsets is \[-1,0\]/],
  [
    "offsets in the wrong order",
    `{"a":${entry("U8", [1], 1, 0)}}`,
    1,
    /"a": data_offsets is \[1,0\]/,
  ],
  [
    "an end outside of the file",
    `{"a":${entry("U8", [9], 0, 9)}}`,
    8,
    /"a": data_offsets is \[0,9\].*within the 8 bytes/,
  ],
  [
    "fewer bytes than dtype and shape need",
    `{"a":${entry("F32", [2], 0, 4)}}`,
    4,
    /the 8 bytes of F32 \[2\], not 4/,
  ],
  [
    "more bytes than dtype and shape need",
    `{"a":${entry("BF16", [2], 0, 8)}}`,
    8,
    /the 4 bytes of BF16 \[2\], not 8/,
  ],
  [
    "overlapping tensors",
    `{"a":${entry("U8", [4], 0, 4)},"b":${entry("U8", [4], 2, 6)}}`,
    6,
    /"b": overlaps/,
  ],
  [
    "the same bytes twice",
    `{"a":${entry("U8", [4], 0, 4)},"b":${entry("U8", [4], 0, 4)}}`,
    4,
    /overlaps/,
  ],
  [
    "a hole between tensors",
    `{"a":${entry("U8", [2], 0, 2)},"b":${entry("U8", [2], 4, 6)}}`,
    6,
    /"b": leaves a hole/,
  ],
  ["a hole before the first tensor", `{"a":${entry("U8", [2], 1, 3)}}`, 3, /"a": leaves a hole/],
  [
    "bytes after the last tensor",
    `{"a":${entry("U8", [2], 0, 2)}}`,
    3,
    /expected the end of the file/,
  ],
];

for (const [what, header, dataBytes, message] of refused) {
  test(`${what} is refused by name, value and expectation`, async (t) => {
    const file = join(await temporaryDir(t), "refused.safetensors");
    await writeFile(
      file,
      safetensorsFile(Buffer.from(header, "latin1"), new Uint8Array(dataBytes)),
    );
    await assert.rejects(SafetensorsFile.open(file), (error) => {
      assert.ok(error instanceof SafetensorsError, String(error));
      assert.ok(error.message.startsWith(`${file}: `));
      assert.match(error.message, message);
      return true;
    });
  });
}

test("a header length beyond the file or the limit is refused before anything is allocated", async (t) => {
  const file = join(await temporaryDir(t), "long.safetensors");
  for (const length of [valid.length - 7, 2 ** 40, 2 ** 63]) {
    const bytes = Buffer.from(valid);
    bytes.writeBigUInt64LE(BigInt(length));
    await writeFile(file, bytes);
    await assert.rejects(SafetensorsFile.open(file), /header length is \d+, expected at most/);
  }
  // A sparse file that is long enough for its header.
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(MAX_HEADER_BYTES + 1));
  await writeFile(file, bytes);
  await truncate(file, 2 * MAX_HEADER_BYTES);
  await assert.rejects(SafetensorsFile.open(file), /expected at most 100000000 /);
});

test("a directory in the place of a file is refused", async (t) => {
  const file = join(await temporaryDir(t), "dir.safetensors");
  await mkdir(file);
  await assert.rejects(SafetensorsFile.open(file), SafetensorsError);
});

test("a header may end in spaces, and dtypes that nobody knows are only names", () => {
  const text = Buffer.from(`{"a":${entry("Q3", [7], 0, 5)}}   `);
  const parsed = parseSafetensorsHeader(text, 8 + text.length + 5, "f");
  assert.equal(parsed.get("a")!.dtype, "Q3");
});

test("repeated keys are found at any depth, and only within one object", () => {
  assert.equal(repeatedKey('{"a":{"b":1},"c":{"b":2}}'), undefined);
  assert.equal(repeatedKey('{"a":["b","b",":"],"b":"a"}'), undefined);
  assert.equal(repeatedKey('[{"a":1},{"a":1}]'), undefined);
  assert.equal(repeatedKey(String.raw`{"\"":1,"\\":2,"x":{"\"":{}, "k":0 ,"k":1}}`), "k");
});
