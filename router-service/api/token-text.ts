/** Tokens as the log-probability formats show them. */

import type { Tokenizer } from "../../core/model/tokenizer/text.ts";

/** Text of one token: its UTF-8 text, `bytes:\xe2\x80` where its bytes are no UTF-8, `token_id:17` without a tokenizer. */
export function tokenText(tokenizer: Tokenizer | undefined, id: number): string {
  if (tokenizer === undefined) return `token_id:${id}`;
  const bytes = tokenizer.tokenBytes(id);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
  }
}

/** UTF-8 bytes of one token; null without a tokenizer. */
export function tokenByteList(tokenizer: Tokenizer | undefined, id: number): number[] | null {
  return tokenizer === undefined ? null : Array.from(tokenizer.tokenBytes(id));
}

/** Code points that begin in the token: how far it moves the text offset. */
export function tokenCodePoints(tokenizer: Tokenizer | undefined, id: number): number {
  if (tokenizer === undefined) return 0;
  let count = 0;
  // A byte 10xxxxxx goes on with a code point that an earlier byte began.
  for (const byte of tokenizer.tokenBytes(id)) if ((byte & 0xc0) !== 0x80) count++;
  return count;
}
