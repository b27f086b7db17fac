/** The tokenizers under test/tokenizers, unpacked. */

import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";

import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import { loadTokenizer } from "../../core/model/tokenizer/tokenizer.ts";

/** Where the tokenizers, their vectors and the chat templates lie. */
export const TOKENIZERS = join(import.meta.dirname, "../tokenizers");

/** Names of the tokenizers: folders of TOKENIZERS. */
export const TOKENIZER_NAMES = ["deepseek", "mixtral", "olmo", "qwen2"] as const;

/** One of TOKENIZER_NAMES. */
export type TokenizerName = (typeof TOKENIZER_NAMES)[number];

/** Loads a tokenizer from a copy of its directory; `config` is put over its tokenizer_config.json. */
export async function loadRealTokenizer(name: TokenizerName, config?: object): Promise<Tokenizer> {
  const dir = await mkdtemp(join(tmpdir(), `switchyard-${name}-`));
  try {
    await cp(join(TOKENIZERS, name), dir, { recursive: true });
    const packed = await readFile(join(dir, "tokenizer.json.br"));
    await writeFile(join(dir, "tokenizer.json"), brotliDecompressSync(packed));
    if (config) await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(config));
    return (await loadTokenizer(dir))!;
  } finally {
    await rm(dir, { recursive: true });
  }
}
