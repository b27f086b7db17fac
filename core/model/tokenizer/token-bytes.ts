/** The bytes that a vocabulary's tokens stand for, where the decoder in tokenizer.json makes text of bytes alone. */

import { byteLevelBytes } from "./byte-level.ts";
import { isJsonObject } from "../checkpoint/json-file.ts";

/** How tokens become bytes. */
export interface TokenBytes {
  /** Bytes of a token that is no added token. */
  readonly bytesOf: (token: string) => Uint8Array;
  /** The decoder takes away one space at the beginning of a text, which the normalizer put there. */
  readonly stripsFirstSpace: boolean;
}

/**
 * What a decoder makes of tokens: byte-level BPE's alphabet, or SentencePiece's pieces with `▁` for a space and
 * `<0x41>` for a byte. Undefined for others, of which a token's text depends on its neighbours.
 */
export function tokenBytesOf(decoder: unknown): TokenBytes | undefined {
  if (isByteLevel(decoder)) return { bytesOf: byteLevelBytes, stripsFirstSpace: false };
  const strips = sentencePieceStrips(decoder);
  return strips === undefined
    ? undefined
    : { bytesOf: sentencePieceBytes, stripsFirstSpace: strips === 1 };
}

/** Bytes of a SentencePiece piece. */
export function sentencePieceBytes(token: string): Uint8Array {
  const byte = /^<0x([0-9A-F]{2})>$/iu.exec(token);
  return byte
    ? Uint8Array.of(Number.parseInt(byte[1], 16))
    : Buffer.from(token.replaceAll("▁", " "));
}

function isByteLevel(decoder: unknown): boolean {
  if (!isJsonObject(decoder)) return false;
  if (decoder.type !== "Sequence") return decoder.type === "ByteLevel";
  const parts: unknown = decoder.decoders;
  return Array.isArray(parts) && parts.length > 0 && parts.every(isByteLevel);
}

/** Spaces that Llama's decoder strips: Replace ▁, ByteFallback, Fuse, and Strip where a space was prepended. */
function sentencePieceStrips(decoder: unknown): 0 | 1 | undefined {
  if (!isJsonObject(decoder) || decoder.type !== "Sequence") return undefined;
  const parts: unknown = decoder.decoders;
  if (!Array.isArray(parts) || !parts.every(isJsonObject)) return undefined;
  const [replace, fallback, fuse, strip, ...more] = parts;
  const { pattern } = replace ?? {};
  const known =
    replace?.type === "Replace" &&
    isJsonObject(pattern) &&
    pattern.String === "▁" &&
    replace.content === " " &&
    fallback?.type === "ByteFallback" &&
    fuse?.type === "Fuse" &&
    more.length === 0;
  if (!known) return undefined;
  if (strip === undefined) return 0;
  const stripsOne =
    strip.type === "Strip" && strip.content === " " && strip.start === 1 && strip.stop === 0;
  return stripsOne ? 1 : undefined;
}
