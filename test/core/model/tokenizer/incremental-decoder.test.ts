import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import fc from "fast-check";

import { createIncrementalDecoder } from "../../../../core/model/tokenizer/incremental-decoder.ts";
import type { Tokenizer } from "../../../../core/model/tokenizer/text.ts";
import { loadTokenizer } from "../../../../core/model/tokenizer/tokenizer.ts";

const tokenizer = (await loadTokenizer(join(import.meta.dirname, "../../../../models/demo-moe")))!;

/** The same tokens behind a decoder of which only whole texts are known. */
const opaque: Tokenizer = { ...tokenizer, byteLevel: false };

const anyIds = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize + 3 }), { maxLength: 120 });
/** Ids of single bytes: mostly not UTF-8. */
const byteIds = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter(
  (id) => tokenizer.tokenBytes(id).length === 1,
);
const anyBytes = fc.array(fc.constantFrom(...byteIds), { maxLength: 80 });
const anyCuts = fc.infiniteStream(fc.integer({ min: 1, max: 4 }));

/** The pieces of a decoder that gets the ids in portions. */
function piecesOf(
  tokenizer: Tokenizer,
  ids: readonly number[],
  portions: Iterator<number>,
  options?: { skipSpecialTokens?: boolean },
): string[] {
  const decoder = createIncrementalDecoder(tokenizer, options);
  const pieces: string[] = [];
  for (let i = 0; i < ids.length;) {
    const next = i + (portions.next().value as number);
    pieces.push(decoder.push(ids.slice(i, next)));
    i = next;
  }
  return [...pieces, decoder.flush()];
}

for (const [name, tested] of [
  ["bytes", tokenizer],
  ["windows", opaque],
] as const) {
  for (const skipSpecialTokens of [false, true]) {
    test(`decoding by ${name} in any portions gives the text of all ids, skipSpecialTokens ${skipSpecialTokens}`, () => {
      fc.assert(
        fc.property(fc.oneof(anyIds, anyBytes), anyCuts, (ids, cuts) => {
          const pieces = piecesOf(tested, ids, cuts, { skipSpecialTokens });
          assert.equal(pieces.join(""), tokenizer.decode(ids, { skipSpecialTokens }));
        }),
        { numRuns: 200 },
      );
    });
  }

  test(`decoding by ${name} never splits a character of a well-formed text`, () => {
    const character = fc.constantFrom(
      "👩‍👩‍👧",
      "🇫🇷",
      "漢",
      "字",
      "é",
      "ı",
      "𐍈",
      "﷽",
      "a",
      " ",
      "\n",
      "한",
    );
    fc.assert(
      fc.property(fc.array(character, { maxLength: 60 }), (characters) => {
        const text = characters.join("");
        const pieces = piecesOf(tested, tokenizer.encode(text), ones());
        for (const piece of pieces) {
          assert.ok(!piece.includes("\ufffd"), JSON.stringify(piece));
          assert.ok(piece.isWellFormed());
        }
        assert.equal(pieces.join(""), text);
      }),
    );
  });
}

function* ones(): Generator<number> {
  for (;;) yield 1;
}

test("a character is given out with the token that completes it, not later", () => {
  const ids = tokenizer.encode("漢a");
  const decoder = createIncrementalDecoder(tokenizer);
  assert.equal(ids.length > 2, true, "the character takes more than one token");
  const pieces = ids.map((id) => decoder.push([id]));
  assert.deepEqual(pieces, [...Array<string>(ids.length - 2).fill(""), "漢", "a"]);
  assert.equal(decoder.flush(), "");
});

test("bytes that wait for more become U+FFFD in the end, and the decoder is as new", () => {
  const [first] = tokenizer.encode("漢");
  const decoder = createIncrementalDecoder(tokenizer);
  assert.equal(decoder.push([first]), "");
  assert.equal(decoder.flush(), "\ufffd");
  assert.equal(decoder.push(tokenizer.encode("ok")), "ok");
});

test("a skipped special token does not part the bytes of a character", () => {
  const [head, ...tail] = tokenizer.encode("漢");
  const ids = [head, ...tokenizer.encode("<|im_end|>"), ...tail];
  const skipping = createIncrementalDecoder(tokenizer, { skipSpecialTokens: true });
  assert.equal(skipping.push(ids) + skipping.flush(), "漢");
  const keeping = createIncrementalDecoder(tokenizer);
  assert.match(keeping.push(ids) + keeping.flush(), /^\ufffd<\|im_end\|>\ufffd+$/u);
});
