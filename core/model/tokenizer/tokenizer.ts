/** A model directory's tokenizer. The only user of `@huggingface/tokenizers`. */

import { join } from "node:path";

import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";

import { errorMessage } from "../../error-message.ts";
import {
  type ChatTemplate,
  ChatTemplateError,
  compileChatTemplate,
  templateSource,
  type TemplateTokens,
} from "./chat-template.ts";
import type { ModelConfig } from "../config.ts";
import {
  isJsonObject,
  type JsonObject,
  readJsonFile,
  readTextFile,
} from "../checkpoint/json-file.ts";
import { correctPatterns, type LibraryPreTokenizer } from "./pre-tokenizer-patterns.ts";
import type { Tokenizer } from "./text.ts";
import { sentencePieceBytes, tokenBytesOf } from "./token-bytes.ts";
import { TwoGenerationCache } from "./two-generation-cache.ts";

const MAX_TOKENIZER_BYTES = 256 * 1024 * 1024;
const MAX_TEMPLATE_BYTES = 4 * 1024 * 1024;
/** Words whose pieces are remembered, twice over. */
const CACHED_WORDS = 8192;
const SPACE = 0x20;

/** What is used of the library; its own declarations do not resolve under `nodenext`. */
interface Library {
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: number[] };
  decode(ids: readonly number[], options: { clean_up_tokenization_spaces: boolean }): string;
  id_to_token(id: number): string | undefined;
  token_to_id(token: string): number | undefined;
  get_added_tokens_decoder(): ReadonlyMap<number, { readonly special: boolean }>;
  readonly pre_tokenizer: LibraryPreTokenizer | null;
  readonly model: {
    readonly vocab: readonly (string | undefined)[];
    /** Pieces of words; BPE has it. */
    cache?: Pick<TwoGenerationCache<string, string[]>, "get" | "put" | "clear">;
  };
}

/** A tokenizer file does not make sense; the message names it. */
export class TokenizerError extends Error {
  override readonly name = "TokenizerError";
  readonly file: string;
  constructor(file: string, problem: string) {
    super(`${file}: ${problem}`);
    this.file = file;
  }
}

/**
 * Loads `tokenizer.json`, with `tokenizer_config.json` and `chat_template.jinja` where they are there.
 * Undefined where there is no tokenizer.json. Throws TokenizerError or JsonFileError naming the file; given the model's
 * config, also where the tokenizer has ids that the model has not.
 */
export async function loadTokenizer(
  dir: string,
  config?: Pick<ModelConfig, "vocabSize">,
): Promise<Tokenizer | undefined> {
  const tokenizerFile = join(dir, "tokenizer.json");
  const json = await readJsonFile(tokenizerFile, MAX_TOKENIZER_BYTES);
  if (!json) return undefined;
  const options =
    (await readJsonFile(join(dir, "tokenizer_config.json"), MAX_TOKENIZER_BYTES)) ?? {};
  let tokenizer: Omit<Tokenizer, "renderChat" | "hasChatTemplate">;
  try {
    tokenizer = createTokenizer(json, options);
    checkIds(tokenizer.encode("a b"));
  } catch (error) {
    throw new TokenizerError(tokenizerFile, errorMessage(error));
  }
  if (config && tokenizer.vocabSize > config.vocabSize) {
    const problem = `token id ${tokenizer.vocabSize - 1}, expected ids below vocab_size ${config.vocabSize}`;
    throw new TokenizerError(tokenizerFile, problem);
  }
  const chatTemplate = await loadChatTemplate(dir, options);
  return {
    ...tokenizer,
    hasChatTemplate: chatTemplate !== undefined,
    renderChat: (messages) => {
      if (!chatTemplate) throw new ChatTemplateError("the model has no chat template");
      return chatTemplate(messages);
    },
  };
}

/** Throws TypeError where the tokenizer adds tokens around a text that its vocabulary does not have. */
function checkIds(ids: readonly (number | undefined)[]): void {
  if (!ids.every(Number.isSafeInteger)) {
    throw new TypeError("its post-processor adds a token that is not in the vocabulary");
  }
}

/** A template in a file of its own wins over the one in tokenizer_config.json, as with Hugging Face. */
async function loadChatTemplate(
  dir: string,
  config: JsonObject,
): Promise<ChatTemplate | undefined> {
  const templateFile = join(dir, "chat_template.jinja");
  const ownFile = await readTextFile(templateFile, MAX_TEMPLATE_BYTES);
  try {
    const source = ownFile ?? templateSource(config.chat_template);
    return source === undefined ? undefined : compileChatTemplate(source, namedTokens(config));
  } catch (error) {
    const file = ownFile === undefined ? join(dir, "tokenizer_config.json") : templateFile;
    throw new TokenizerError(file, `chat template: ${errorMessage(error)}`);
  }
}

/** `bos_token`, `eos_token` and their like: strings, or objects with the string as `content`. */
function namedTokens(config: JsonObject): TemplateTokens {
  const tokens: Record<string, string> = {};
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith("_token")) continue;
    const content = isJsonObject(value) ? value.content : value;
    if (typeof content === "string") tokens[name] = content;
  }
  return tokens;
}

function createTokenizer(
  json: JsonObject,
  config: JsonObject,
): Omit<Tokenizer, "renderChat" | "hasChatTemplate"> {
  const library = new HuggingFaceTokenizer(
    { ...json, added_tokens: addedTokens(json, config) },
    config,
  ) as unknown as Library;
  correctPatterns(library.pre_tokenizer);
  const { model } = library;
  // The library's own cache deletes and re-inserts on every hit: 45 µs per word in a full Map of 10,000.
  if (model.cache) model.cache = new TwoGenerationCache(CACHED_WORDS);
  const added = library.get_added_tokens_decoder();
  const special = new Set<number>();
  for (const [id, token] of added) if (token.special) special.add(id);
  const around = tokensAround(library, config);
  const decoder = tokenBytesOf(json.decoder);
  const bytesOf = decoder?.bytesOf ?? sentencePieceBytes;
  const stripsFirstSpace = decoder?.stripsFirstSpace ?? false;
  const bytesById: (Uint8Array | undefined)[] = [];

  const tokenBytes = (id: number): Uint8Array => {
    const token = library.id_to_token(id);
    // Not remembered: there are more such ids than tokens.
    if (token === undefined) return new Uint8Array();
    bytesById[id] ??= added.has(id) ? Buffer.from(token) : bytesOf(token);
    return bytesById[id];
  };

  return {
    encode: (text, options) => {
      const addSpecialTokens = options?.addSpecialTokens ?? true;
      const { ids } = library.encode(text, { add_special_tokens: addSpecialTokens && !around });
      return addSpecialTokens && around ? [...around.before, ...ids, ...around.after] : ids;
    },
    decode: (ids, options) => {
      const wanted = options?.skipSpecialTokens ? ids.filter((id) => !special.has(id)) : ids;
      if (decoder) {
        const bytes = Buffer.concat(wanted.map(tokenBytes));
        return decodeUtf8(stripsFirstSpace && bytes[0] === SPACE ? bytes.subarray(1) : bytes);
      }
      const known = wanted.filter((id) => library.id_to_token(id) !== undefined);
      // The library refuses an empty list.
      if (known.length === 0) return "";
      return library.decode(known, { clean_up_tokenization_spaces: false });
    },
    tokenBytes,
    isSpecial: (id) => special.has(id),
    byteLevel: decoder !== undefined,
    stripsFirstSpace,
    vocabSize: model.vocab.length,
  };
}

/**
 * tokenizer.json's added tokens, and those that only tokenizer_config.json has.
 * Throws TypeError for a token that counts as a single word only, which the library would take anywhere.
 */
function addedTokens(json: JsonObject, config: JsonObject): readonly unknown[] {
  const own = Array.isArray(json.added_tokens) ? json.added_tokens : [];
  const ids = new Set(own.map((token: unknown) => (isJsonObject(token) ? token.id : undefined)));
  const more = Object.entries(
    isJsonObject(config.added_tokens_decoder) ? config.added_tokens_decoder : {},
  ).flatMap(([id, token]) => {
    return isJsonObject(token) && !ids.has(Number(id)) ? [{ ...token, id: Number(id) }] : [];
  });
  const all: readonly unknown[] = [...own, ...more];
  for (const token of all) {
    if (isJsonObject(token) && token.single_word === true) {
      throw new TypeError(`added token ${String(token.content)}: single_word is not supported`);
    }
  }
  return all;
}

/**
 * Ids that stand around every text, where tokenizer_config.json says so by add_bos_token and add_eos_token: it wins
 * over the post-processor, which in published DeepSeek models adds nothing. Undefined where it does not say.
 */
function tokensAround(library: Library, config: JsonObject) {
  const { add_bos_token: before, add_eos_token: after } = config;
  if (typeof before !== "boolean" && typeof after !== "boolean") return undefined;
  const { bos_token: bos, eos_token: eos } = namedTokens(config);
  const idsOf = (wanted: unknown, token: string | undefined): number[] => {
    if (wanted !== true || token === undefined) return [];
    const id = library.token_to_id(token);
    if (id === undefined) throw new TypeError(`${token} is not in the vocabulary`);
    return [id];
  };
  return { before: idsOf(before, bos), after: idsOf(after, eos) };
}

function decodeUtf8(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}
