import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import fc from "fast-check";

import { createIncrementalDecoder } from "../../../../core/model/tokenizer/incremental-decoder.ts";
import type { Tokenizer } from "../../../../core/model/tokenizer/text.ts";
import {
  loadRealTokenizer,
  TOKENIZER_NAMES,
  type TokenizerName,
  TOKENIZERS,
} from "../../../support/real-tokenizers.ts";

const texts = (await readFile(join(TOKENIZERS, "vectors.inp"), "utf8"))
  .split("\n__ggml_vocab_test__\n")
  .slice(0, -1);

const mixed = JSON.parse(await readFile(join(TOKENIZERS, "mixed.json"), "utf8")) as {
  texts: string[];
  ids: Record<TokenizerName, number[][]>;
};

const loaded = new Map<TokenizerName, Promise<Tokenizer>>();

function tokenizerOf(name: TokenizerName): Promise<Tokenizer> {
  let tokenizer = loaded.get(name);
  if (!tokenizer) loaded.set(name, (tokenizer = loadRealTokenizer(name)));
  return tokenizer;
}

const plain = { addSpecialTokens: false };

/** What encoding keeps of a text: its NFC form, or for Mixtral spaces in the place of `▁`. */
const kept: Record<TokenizerName, (text: string) => string> = {
  deepseek: (text) => text,
  mixtral: (text) => text.replaceAll("▁", " "),
  olmo: (text) => text.normalize("NFC"),
  qwen2: (text) => text.normalize("NFC"),
};

for (const name of TOKENIZER_NAMES) {
  test(`${name}: all 46 test vectors encode to their ids and decode to their bytes`, async () => {
    const tokenizer = await tokenizerOf(name);
    const lines = (await readFile(join(TOKENIZERS, name, "vectors.out"), "utf8")).split("\n");
    assert.equal(texts.length, 46);
    for (const [i, text] of texts.entries()) {
      const expected = lines[i].split(" ").filter(Boolean).map(Number);
      const ids = tokenizer.encode(text, plain);
      assert.deepEqual(ids, expected, JSON.stringify(text));
      assert.deepEqual(Buffer.from(tokenizer.decode(ids)), Buffer.from(text));
    }
  });

  test(`${name}: special tokens, U+0085, U+FEFF, fractions and mixed scripts encode as in the Rust library`, async () => {
    const tokenizer = await tokenizerOf(name);
    for (const [i, text] of mixed.texts.entries()) {
      assert.deepEqual(
        tokenizer.encode(text, plain),
        mixed.ids[name][i],
        `text ${i}: ${JSON.stringify(text)}`,
      );
    }
  });

  test(`${name}: streamed in any portions, tokens give the bytes of the text`, async () => {
    const tokenizer = await tokenizerOf(name);
    for (const text of texts) {
      const ids = tokenizer.encode(text, plain);
      for (const portion of [1, 3]) {
        const decoder = createIncrementalDecoder(tokenizer);
        let streamed = "";
        for (let i = 0; i < ids.length; i += portion) {
          const piece = decoder.push(ids.slice(i, i + portion));
          assert.ok(!piece.includes("\ufffd"), JSON.stringify(piece));
          streamed += piece;
        }
        assert.equal(streamed + decoder.flush(), text);
      }
    }
  });

  test(`${name}: any text survives encoding and decoding, as far as the normalizer keeps it`, async () => {
    const tokenizer = await tokenizerOf(name);
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 40 }), (text) => {
        assert.equal(tokenizer.decode(tokenizer.encode(text, plain)), kept[name](text));
      }),
    );
  });

  test(`${name}: a text cut between any two tokens goes on as if it were not`, async () => {
    const tokenizer = await tokenizerOf(name);
    const text = "The quick  brown fox, 漢字 🚀 — and\n\n  more.";
    const ids = tokenizer.encode(text, plain);
    for (let cut = 0; cut <= ids.length; cut++) {
      const before = tokenizer.decode(ids.slice(0, cut));
      // A character that is cut in two is the only loss.
      if (before.endsWith("\ufffd")) continue;
      const decoder = createIncrementalDecoder(tokenizer, { after: ids.slice(0, cut) });
      assert.equal(before + decoder.push(ids.slice(cut)) + decoder.flush(), text, `cut ${cut}`);
    }
  });
}

test("30 kB of white space before a letter encode within a second of processor time", async () => {
  for (const name of ["deepseek", "qwen2"] as const) {
    const tokenizer = await tokenizerOf(name);
    for (const text of [`${" ".repeat(30_000)}１`, `${"\n".repeat(30_000)}x`]) {
      const begin = process.cpuUsage();
      tokenizer.encode(text, plain);
      const seconds = process.cpuUsage(begin).user / 1e6;
      assert.ok(seconds < 1, `${name} ${JSON.stringify(text.slice(-2))}: ${seconds} s`);
    }
  }
});

test("Mixtral's byte tokens stream as the characters that they form, whole", async () => {
  const tokenizer = await tokenizerOf("mixtral");
  const byteToken = (byte: number) => byte + 3;
  const bytes = [...Buffer.from("é🚀")];
  const decoder = createIncrementalDecoder(tokenizer, { after: [1, 28705] });
  assert.deepEqual(
    bytes.map((byte) => decoder.push([byteToken(byte)])),
    ["", "é", "", "", "", "🚀"],
  );
  assert.deepEqual(
    Buffer.concat(bytes.map((byte) => tokenizer.tokenBytes(byteToken(byte)))),
    Buffer.from("é🚀"),
  );
});

test("Mixtral's first space is no text at the beginning, and text after a prompt", async () => {
  const tokenizer = await tokenizerOf("mixtral");
  const ids = tokenizer.encode("Hello", plain);
  assert.equal(tokenizer.stripsFirstSpace, true);
  assert.equal(tokenizer.decode(ids), "Hello");
  assert.equal(createIncrementalDecoder(tokenizer).push(ids), "Hello");
  const options = { skipSpecialTokens: true };
  const atStart = createIncrementalDecoder(tokenizer, { ...options, after: [1] });
  assert.equal(atStart.push(ids), "Hello", "a first token alone is no text");
  const after = createIncrementalDecoder(tokenizer, { ...options, after: [1, ...ids] });
  assert.equal(after.push(ids), " Hello");
  assert.equal(after.flush() + after.push(ids), " Hello", "as new after a flush");
});

test("DeepSeek's added letters decode to themselves, not to the bytes of their code points", async () => {
  const tokenizer = await tokenizerOf("deepseek");
  const text = "Führer þú ÿ ø";
  const ids = tokenizer.encode(text, plain);
  assert.ok(ids.includes(100_014), "ü is an added token");
  assert.equal(tokenizer.decode(ids), text);
});

test("the first token is added around a text, and only there", async () => {
  const first = { deepseek: 100_000, mixtral: 1, olmo: undefined, qwen2: undefined };
  for (const name of TOKENIZER_NAMES) {
    const tokenizer = await tokenizerOf(name);
    const without = tokenizer.encode("Hi", plain);
    const expected = first[name] === undefined ? without : [first[name], ...without];
    assert.deepEqual(tokenizer.encode("Hi"), expected, name);
    if (first[name] === undefined) continue;
    assert.ok(tokenizer.isSpecial(first[name]));
    assert.equal(tokenizer.decode(expected, { skipSpecialTokens: true }), "Hi");
  }
});
