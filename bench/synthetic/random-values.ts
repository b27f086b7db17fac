/** Random BF16 weights, fast: a value costs half a step of a 32-bit generator and one look-up. */

import { numElements } from "../../core/tensor.ts";
import { drawNormal, seededRandom } from "../../core/random.ts";

/** Elements of one piece. */
const CHUNK = 2 ** 21;
/** Normal values that are drawn from; 16 bits choose one. */
const TABLE_SIZE = 2 ** 16;
/** Standard deviation of matrices, embeddings and biases: what the published configs call initializer_range. */
const DEVIATION = 0.02;

/** Standard deviation of a norm's weights around 1. */
const NORM_DEVIATION = 0.1;

/**
 * Little-endian BF16 values of a tensor in pieces that share one buffer: norms' weights around 1, all else around 0.
 * The same seed and name give the same values, whatever else the checkpoint holds.
 */
export function* randomBf16(
  name: string,
  shape: readonly number[],
  seed: number,
): Generator<Uint8Array> {
  const isNorm = /norm[^.]*\.weight$/.test(name);
  const table = isNorm ? tableOf("norms") : tableOf("matrices");
  const length = numElements(shape);
  const values = new Uint16Array(Math.min(length, CHUNK));
  let state = hash(seed, name);
  for (let done = 0; done < length; done += values.length) {
    const count = Math.min(values.length, length - done);
    for (let i = 0; i < count; i += 2) {
      // xorshift32 (Marsaglia, 2003)
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      values[i] = table[state & 0xffff];
      values[i + 1] = table[state >>> 16];
    }
    yield new Uint8Array(values.buffer, 0, 2 * count);
  }
}

const tables = new Map<string, Uint16Array>();

/** BF16 values that are normally distributed. */
function tableOf(kind: "norms" | "matrices"): Uint16Array {
  let table = tables.get(kind);
  if (table === undefined) {
    const random = seededRandom(1);
    const [mean, deviation] = kind === "norms" ? [1, NORM_DEVIATION] : [0, DEVIATION];
    const exact = Float32Array.from(
      { length: TABLE_SIZE },
      () => mean + deviation * drawNormal(random),
    );
    table = Uint16Array.from(new Uint32Array(exact.buffer), (bits) => bits >>> 16);
    tables.set(kind, table);
  }
  return table;
}

/** A state above 0 from seed and name (FNV-1a). */
function hash(seed: number, name: string): number {
  let state = 0x811c9dc5 ^ seed;
  for (const byte of Buffer.from(name)) state = Math.imul(state ^ byte, 0x01000193);
  return state === 0 ? 1 : state;
}
