/** Prompts of a load run, as token ids or text. */

import { readFile, readdir } from "node:fs/promises";
import path from "node:path";

import { drawBelow, type Random } from "../../core/random.ts";

/** One request's prompt: token ids, or text for the chat endpoint. */
export type Prompt = readonly number[] | string;

/** `count` prompts of `length` uniformly random token ids below `vocabSize`. */
export function randomPrompts(
  count: number,
  length: number,
  vocabSize: number,
  random: Random,
): (readonly number[])[] {
  return Array.from({ length: count }, () =>
    Array.from({ length }, () => drawBelow(random, vocabSize)),
  );
}

/** Texts of a directory's .txt files, in order of their names. Throws where there is none. */
export async function readTexts(directory: string): Promise<string[]> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(".txt")).sort();
  if (names.length === 0) throw new Error(`no .txt file in ${directory}`);
  return Promise.all(names.map((name) => readFile(path.join(directory, name), "utf8")));
}

/**
 * `count` slices of `length` token ids from the texts, at random places, the texts taking turns.
 * Throws where a text has fewer than `length` tokens.
 */
export function textPrompts(
  texts: readonly string[],
  count: number,
  length: number,
  random: Random,
  encode: (text: string) => readonly number[],
): (readonly number[])[] {
  const encoded = texts.map(encode);
  for (const ids of encoded)
    if (ids.length < length)
      throw new Error(`a text has ${ids.length} tokens, prompts of ${length} were asked for`);
  return Array.from({ length: count }, (_, i) => {
    const ids = encoded[i % encoded.length];
    const start = drawBelow(random, ids.length - length + 1);
    return ids.slice(start, start + length);
  });
}
