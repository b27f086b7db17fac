/** The middle one of measured numbers. Pure. */

/** The middle one of some numbers; of an even count, the upper; undefined where there is none. */
export function middle(values: readonly number[]): number | undefined {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}
