/** Times, sizes and counts as people read them; pure. */

/** Of more sizes than these only the sum is shown. */
const MOST_LISTED = 8;

/** A time: 1.23 ms. */
export function secondsText(seconds: number): string {
  if (seconds === 0) return "0 s";
  const units = ["s", "ms", "µs", "ns"];
  let value = seconds;
  let unit = 0;
  while (value < 1 && unit + 1 < units.length) {
    value *= 1000;
    unit++;
  }
  return `${threeDigits(value)} ${units[unit]}`;
}

/** A size: 1.50 GiB. */
export function bytesText(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : threeDigits(value)} ${units[unit]}`;
}

/** Sizes to the byte, each where they are few, and what they come to: 200 + 1848 bytes (2.00 KiB). */
export function offersText(offers: readonly number[]): string {
  const sum = offers.reduce((total, one) => total + one, 0);
  const each = offers.length > 1 && offers.length <= MOST_LISTED ? offers.join(" + ") : sum;
  return `${each} bytes${sum < 1024 ? "" : ` (${bytesText(sum)})`}`;
}

/** So many of something: 1 shard, 2 shards. */
export function countText(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

/** Three digits at least, and no exponent for what is large. */
function threeDigits(value: number): string {
  return Math.abs(value) >= 999.5 ? String(Math.round(value)) : value.toPrecision(3);
}
