import assert from "node:assert/strict";
import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";

import { createIncrementalDecoder } from "../../../../core/model/tokenizer/incremental-decoder.ts";
import { JsonFileError } from "../../../../core/model/checkpoint/json-file.ts";
import { loadTokenizer, TokenizerError } from "../../../../core/model/tokenizer/tokenizer.ts";
import { temporaryDir } from "../checkpoint/safetensors-writer.ts";

const demoDir = join(import.meta.dirname, "../../../../models/demo-moe");
const tokenizer = (await loadTokenizer(demoDir))!;

async function readJson<T>(...path: string[]): Promise<T> {
  return JSON.parse(await readFile(join(demoDir, ...path), "utf8")) as T;
}

const { vocab_size: vocabSize } = await readJson<{ vocab_size: number }>("config.json");
/** The last ids, as the demo model's recipe gives them. */
const [END, TURN, TURN_END] = [vocabSize - 3, vocabSize - 2, vocabSize - 1];

test("the held-out texts encode to the token counts of the reference", async () => {
  const { domains } = await readJson<{ domains: Record<string, { tokens: number }> }>(
    "eval/reference.json",
  );
  assert.ok(Object.keys(domains).length >= 4);
  for (const [domain, { tokens }] of Object.entries(domains)) {
    const ids = tokenizer.encode(await readFile(join(demoDir, "eval", `${domain}.txt`), "utf8"));
    assert.equal(ids.length, tokens, domain);
  }
});

test("every golden's prompt encodes to its token ids, and they decode to the prompt", async () => {
  let compared = 0;
  for (const file of await readdir(join(demoDir, "goldens"))) {
    const golden = await readJson<{ prompt?: string; token_ids?: number[] }>("goldens", file);
    if (golden.prompt === undefined || golden.token_ids === undefined) continue;
    assert.deepEqual(tokenizer.encode(golden.prompt), golden.token_ids, file);
    assert.equal(tokenizer.decode(golden.token_ids), golden.prompt, file);
    compared++;
  }
  assert.ok(compared >= 7, `${compared} goldens`);
});

test("the chat template renders the conversation of the chat golden", async () => {
  const golden = await readJson<{ prompt: string }>("goldens/chat.json");
  const content = /user\n(.*?)<\|im_end\|>/su.exec(golden.prompt)![1];
  assert.equal(tokenizer.hasChatTemplate, true);
  assert.equal(tokenizer.renderChat([{ role: "user", content }]), golden.prompt);
});

test("literal special tokens in a text become their ids, and can be skipped in decoding", () => {
  const ids = tokenizer.encode("a<|endoftext|>b<|im_end|>");
  assert.deepEqual([ids[1], ids[3]], [END, TURN_END]);
  assert.deepEqual(
    [END - 1, END, TURN, TURN_END].map((id) => tokenizer.isSpecial(id)),
    [false, true, true, true],
  );
  assert.equal(tokenizer.decode(ids), "a<|endoftext|>b<|im_end|>");
  assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), "ab");
});

test("the tokens' bytes put together are the text's bytes", () => {
  const text = "héllo 漢字 👩‍👩‍👧 \u0000\u0001\t\r\n<|im_start|> ﷽ 𐍈";
  const ids = tokenizer.encode(text);
  assert.deepEqual(Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id))), Buffer.from(text));
  assert.deepEqual(Buffer.from(tokenizer.tokenBytes(END)), Buffer.from("<|endoftext|>"));
});

test("any text survives encoding and decoding", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 60 }), (text) => {
      assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
    }),
  );
});

test("any ids decode to what the library makes of them", async () => {
  const library = new HuggingFaceTokenizer(
    await readJson<object>("tokenizer.json"),
    await readJson<object>("tokenizer_config.json"),
  );
  const ids = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { minLength: 1 });
  fc.assert(
    fc.property(ids, (ids) => {
      const options = { clean_up_tokenization_spaces: false };
      assert.equal(tokenizer.decode(ids), library.decode(ids, options));
    }),
  );
});

test("ids without a token are no text and no bytes", () => {
  assert.equal(tokenizer.vocabSize, vocabSize);
  for (const id of [vocabSize, 1e9, -1]) {
    assert.equal(tokenizer.decode([id]), "");
    assert.equal(tokenizer.tokenBytes(id).length, 0);
    assert.equal(tokenizer.isSpecial(id), false);
  }
  assert.equal(tokenizer.decode([]), "");
  assert.deepEqual(tokenizer.encode(""), []);
});

test("100 kB of one repeated unit encode within two seconds of processor time, with a full cache as well", async () => {
  for (const domain of ["facts", "books"]) {
    tokenizer.encode(await readFile(join(demoDir, "eval", `${domain}.txt`), "utf8"));
  }
  const size = 100_000;
  for (const unit of ["1", "a", " ", "👩‍👩‍👧", "<|endoftex"]) {
    const text = unit.repeat(size / Buffer.byteLength(unit));
    const begin = process.cpuUsage();
    tokenizer.encode(text);
    const seconds = process.cpuUsage(begin).user / 1e6;
    assert.ok(seconds < 2, `${JSON.stringify(unit)}: ${seconds} s`);
  }
});

test("a tokenizer with ids that the model has not is refused", async () => {
  assert.ok(await loadTokenizer(demoDir, { vocabSize }));
  await assert.rejects(
    loadTokenizer(demoDir, { vocabSize: TURN_END }),
    new RegExp(
      `tokenizer\\.json: token id ${TURN_END}, expected ids below vocab_size ${TURN_END}`,
      "u",
    ),
  );
});

test("a directory without tokenizer.json has no tokenizer", async (t) => {
  assert.equal(await loadTokenizer(await temporaryDir(t)), undefined);
});

test("a broken tokenizer file is an error that names the file", async (t) => {
  const broken: [string, string][] = [
    ["tokenizer.json", "{"],
    ["tokenizer.json", "[]"],
    ["tokenizer.json", "{}"],
    ["tokenizer.json", '{"model":{"type":"Alien"}}'],
    ["tokenizer_config.json", "nonsense"],
    ["tokenizer_config.json", '{"chat_template":7}'],
    ["tokenizer_config.json", '{"chat_template":"{% for %}"}'],
    ["chat_template.jinja", "{{ unclosed"],
  ];
  for (const [name, text] of broken) {
    const dir = await temporaryDir(t);
    await cp(join(demoDir, "tokenizer.json"), join(dir, "tokenizer.json"));
    await writeFile(join(dir, name), text);
    await assert.rejects(loadTokenizer(dir), (error) => {
      assert.ok(error instanceof TokenizerError || error instanceof JsonFileError, String(error));
      assert.equal(error.file, join(dir, name));
      assert.ok(error.message.startsWith(join(dir, name)));
      return true;
    });
  }
});

/** A SentencePiece-like tokenizer: words begin with ▁, unknown characters fall back to byte tokens. */
const sentencePiece = {
  version: "1.0",
  added_tokens: [
    { id: 1, content: "<s>", special: true, normalized: false, lstrip: false, rstrip: false },
  ],
  normalizer: {
    type: "Sequence",
    normalizers: [
      { type: "Prepend", prepend: "▁" },
      { type: "Replace", pattern: { String: " " }, content: "▁" },
    ],
  },
  pre_tokenizer: null,
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [],
    special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
  },
  decoder: {
    type: "Sequence",
    decoders: [
      { type: "Replace", pattern: { String: "▁" }, content: " " },
      { type: "ByteFallback" },
      { type: "Fuse" },
      { type: "Strip", content: " ", start: 1, stop: 0 },
    ],
  },
  model: {
    type: "BPE",
    unk_token: "<unk>",
    fuse_unk: true,
    byte_fallback: true,
    vocab: Object.fromEntries([
      ["<unk>", 0],
      ["<s>", 1],
      ...Array.from({ length: 256 }, (_, byte) => {
        return [`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`, 2 + byte] as const;
      }),
      ...["▁", "a", "b", "c", "ab", "▁ab"].map((token, i) => [token, 258 + i] as const),
    ]),
    merges: ["a b", "▁ ab"],
  },
};

async function sentencePieceWith(t: TestContext, change: object, config: object = {}) {
  const dir = await temporaryDir(t);
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify({ ...sentencePiece, ...change }));
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(config));
  return (await loadTokenizer(dir))!;
}

test("a SentencePiece tokenizer encodes, decodes by bytes and adds its first token", async (t) => {
  const loaded = await sentencePieceWith(t, {});
  assert.deepEqual([loaded.byteLevel, loaded.stripsFirstSpace], [true, true]);
  assert.equal(loaded.hasChatTemplate, false);
  assert.deepEqual(loaded.encode("ab c"), [1, 263, 258, 261]);
  assert.deepEqual(loaded.encode("ab c", { addSpecialTokens: false }), [263, 258, 261]);
  const ids = loaded.encode("ab 漢 c", { addSpecialTokens: false });
  assert.equal(loaded.decode(ids), "ab 漢 c");
  assert.deepEqual(Buffer.from(loaded.tokenBytes(263)), Buffer.from(" ab"));
  assert.deepEqual([...loaded.tokenBytes(2 + 0xe6)], [0xe6]);
});

test("a decoder that looks at neighbours decodes as the library does", async (t) => {
  const decoder = { type: "Metaspace", replacement: "▁", prepend_scheme: "always" };
  const loaded = await sentencePieceWith(t, { decoder });
  assert.equal(loaded.byteLevel, false);
  const ids = loaded.encode("ab c", { addSpecialTokens: false });
  assert.equal(loaded.decode(ids), "ab c");
  const streamed = createIncrementalDecoder(loaded);
  assert.equal(streamed.push(ids) + streamed.flush(), "ab c");
  const after = createIncrementalDecoder(loaded, { after: ids });
  assert.equal(after.push(ids) + after.flush(), " ab c");
});

test("add_bos_token and add_eos_token of tokenizer_config.json win over the post-processor", async (t) => {
  const names = { bos_token: "<s>", eos_token: { content: "ab" } };
  const cases: [object, number[], number[]][] = [
    [{ ...names, add_bos_token: true, add_eos_token: true }, [1], [262]],
    [{ ...names, add_bos_token: false }, [], []],
    [{ eos_token: "ab", add_bos_token: true }, [], []],
    [names, [1], []],
  ];
  for (const [config, before, after] of cases) {
    const loaded = await sentencePieceWith(t, {}, config);
    assert.deepEqual(loaded.encode("c"), [...before, 258, 261, ...after], JSON.stringify(config));
  }
  await assert.rejects(
    sentencePieceWith(t, {}, { bos_token: "<none>", add_bos_token: true }),
    /tokenizer\.json: <none> is not in the vocabulary/,
  );
});

test("added tokens that only tokenizer_config.json has are tokens too", async (t) => {
  const added_tokens_decoder = {
    "1": { content: "<s>", special: true },
    "264": { content: "<tool>", special: true },
  };
  const loaded = await sentencePieceWith(t, {}, { added_tokens_decoder });
  const ids = loaded.encode("ab<tool>", { addSpecialTokens: false });
  assert.deepEqual(ids, [263, 264]);
  assert.equal(loaded.isSpecial(264), true);
  assert.equal(loaded.decode(ids), "ab<tool>");
});

test("parts of a tokenizer that the library would take for others are refused by name", async (t) => {
  const split = { type: "Split", pattern: { String: "x" }, behavior: "MergedWithNext" };
  const word = { id: 263, content: "▁ab", single_word: true };
  await assert.rejects(
    sentencePieceWith(t, { pre_tokenizer: { type: "Sequence", pretokenizers: [split] } }),
    /tokenizer\.json: pre_tokenizer: Split with behavior MergedWithNext is not supported/,
  );
  await assert.rejects(
    sentencePieceWith(t, { added_tokens: [word] }),
    /tokenizer\.json: added token ▁ab: single_word is not supported/,
  );
});

test("a tokenizer that adds a token which its vocabulary lacks is refused", async (t) => {
  const dir = await temporaryDir(t);
  const vocab = { ...sentencePiece.model.vocab } as Record<string, number>;
  delete vocab["<s>"];
  delete vocab["<unk>"];
  const json = { ...sentencePiece, added_tokens: [], model: { ...sentencePiece.model, vocab } };
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(json));
  await assert.rejects(loadTokenizer(dir), TokenizerError);
});
