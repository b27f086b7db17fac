/** Patterns of the tokenizer library's pre-tokenizers, where its own differ from Hugging Face's Rust library. */

/** A part of the library's pre-tokenizer, as far as it is corrected; a sequence holds others. */
export interface LibraryPreTokenizer {
  readonly config?: {
    readonly type?: string;
    readonly individual_digits?: boolean;
    readonly pattern?: { readonly Regex?: string };
    readonly behavior?: string;
    readonly invert?: boolean;
  };
  readonly tokenizers?: readonly (LibraryPreTokenizer | null)[];
  pattern?: RegExp | null;
}

/**
 * GPT-2's words with Unicode's white space. `\s` of JavaScript, which the library takes, has U+FEFF and lacks U+0085.
 */
const BYTE_LEVEL_WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** All numbers, `½` and `²` too, as Rust's `char::is_numeric`; the library knows decimal digits only. */
const NUMBERS = /\P{N}+|\p{N}+/gu;
const SINGLE_NUMBERS = /\P{N}+|\p{N}/gu;

/**
 * DeepSeek's `\s+$`. A match can begin only where white space does; without saying so the search is tried from each
 * character of a run, and 100 kB of spaces before a letter take a minute.
 */
const SPACE_BEFORE_LINE_END = /(?<!\p{White_Space})\p{White_Space}+(?=\n|$)/gu;

/** Ways to split that the library does as they are meant; it takes any other for the first. */
const SPLIT_BEHAVIORS: ReadonlySet<string> = new Set(["Isolated", "Removed"]);

/**
 * Puts right the patterns of a pre-tokenizer that the library made, in place.
 * Throws TypeError for a way to split that the library does not know.
 */
export function correctPatterns(part: LibraryPreTokenizer | null | undefined): void {
  if (!part) return;
  part.tokenizers?.forEach(correctPatterns);
  const { config } = part;
  if (config?.type === "ByteLevel") part.pattern = BYTE_LEVEL_WORDS;
  else if (config?.type === "Digits") {
    part.pattern = config.individual_digits === true ? SINGLE_NUMBERS : NUMBERS;
  } else if (config?.type === "Split") {
    const { behavior, invert, pattern } = config;
    if (behavior !== undefined && !SPLIT_BEHAVIORS.has(behavior)) {
      throw new TypeError(`pre_tokenizer: Split with behavior ${behavior} is not supported`);
    }
    const isSpaceBeforeLineEnd = pattern?.Regex === String.raw`\s+$`;
    if (isSpaceBeforeLineEnd && invert !== true) part.pattern = SPACE_BEFORE_LINE_END;
  }
}
