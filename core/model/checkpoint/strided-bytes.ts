/** Rows picked from bytes in which they do not follow each other. */

/** Rows `first`, `first + step`, … of a matrix whose rows take `rowBytes`. */
export function pickRows(
  bytes: Uint8Array,
  rowBytes: number,
  first: number,
  step: number,
  count: number,
): Uint8Array<ArrayBuffer> {
  const picked = new Uint8Array(count * rowBytes);
  for (let row = 0; row < count; row++) {
    const begin = (first + row * step) * rowBytes;
    picked.set(bytes.subarray(begin, begin + rowBytes), row * rowBytes);
  }
  return picked;
}

/** Rows that are written in turns, so that their cache lines stay. */
const TURN = 64;

/**
 * Columns `first`, `first + step`, … of a matrix as rows.
 * @param bytes [columns, allRows] elements of 2 or 4 bytes
 * @returns [count, columns]
 */
export function pickColumns(
  bytes: Uint8Array<ArrayBuffer>,
  elementBytes: 2 | 4,
  columns: number,
  first: number,
  step: number,
  count: number,
): Uint8Array<ArrayBuffer> {
  const from = elementBytes === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer);
  const allRows = from.length / columns;
  const picked =
    elementBytes === 2 ? new Uint16Array(count * columns) : new Uint32Array(count * columns);
  for (let begin = 0; begin < count; begin += TURN) {
    const end = Math.min(begin + TURN, count);
    for (let column = 0; column < columns; column++) {
      let at = column * allRows + first + begin * step;
      for (let row = begin; row < end; row++, at += step) picked[row * columns + column] = from[at];
    }
  }
  return new Uint8Array(picked.buffer);
}
