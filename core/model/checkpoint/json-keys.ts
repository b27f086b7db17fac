/** Repeated keys in JSON text, which `JSON.parse` silently resolves to the last. */

/** The first key that an object of this valid JSON text has twice, at any depth; undefined where there is none. */
export function repeatedKey(text: string): string | undefined {
  /** Keys of the open objects; undefined for an open list. */
  const open: (Set<string> | undefined)[] = [];
  let string = "";
  for (let i = 0; i < text.length; i++) {
    switch (text[i]) {
      case '"': {
        const end = closingQuote(text, i);
        string = text.slice(i, end + 1);
        i = end;
        break;
      }
      case ":": {
        const key = JSON.parse(string) as string;
        const keys = open.at(-1);
        if (keys?.has(key)) return key;
        keys?.add(key);
        break;
      }
      case "{":
        open.push(new Set());
        break;
      case "[":
        open.push(undefined);
        break;
      case "}":
      case "]":
        open.pop();
        break;
      default: // white space, commas, numbers and words
    }
  }
  return undefined;
}

/** Index of the quote that ends the string that begins at `start`. */
function closingQuote(text: string, start: number): number {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i;
}
