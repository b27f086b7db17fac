import assert from "node:assert/strict";
import { test } from "node:test";

import { bytesText, countText, offersText, secondsText } from "../../core/amounts.ts";

test("times are shown in the unit that reads well, and never with an exponent", () => {
  const texts: readonly (readonly [number, string])[] = [
    [0, "0 s"],
    [1.08e-9, "1.08 ns"],
    [0.0000012, "1.20 µs"],
    [0.0123, "12.3 ms"],
    [0.9996, "1000 ms"],
    [12.3, "12.3 s"],
    [3000, "3000 s"],
  ];
  assert.deepEqual(
    texts.map(([seconds]) => secondsText(seconds)),
    texts.map(([, text]) => text),
  );
});

test("sizes are shown in the unit that reads well, bytes without a fraction", () => {
  const texts: readonly (readonly [number, string])[] = [
    [0, "0 B"],
    [12.4, "12 B"],
    [1023, "1023 B"],
    [1024, "1.00 KiB"],
    [1_048_575, "1024 KiB"],
    [10 * 2 ** 20, "10.0 MiB"],
    [3.5 * 2 ** 30, "3.50 GiB"],
    [5000 * 2 ** 40, "5000 TiB"],
  ];
  assert.deepEqual(
    texts.map(([bytes]) => bytesText(bytes)),
    texts.map(([, text]) => text),
  );
});

test("one of something is not called many", () => {
  assert.deepEqual(
    [countText(1, "shard"), countText(2, "shard"), countText(0, "copy", "copies")],
    ["1 shard", "2 shards", "0 copies"],
  );
});

test("memory that is too little is shown to the byte, and in the unit that reads well", () => {
  const texts: readonly (readonly [readonly number[], string])[] = [
    [[], "0 bytes"],
    [[512], "512 bytes"],
    [[200_000], "200000 bytes (195 KiB)"],
    [[8 * 2 ** 30, 8 * 2 ** 30], "8589934592 + 8589934592 bytes (16.0 GiB)"],
    [Array.from({ length: 9 }, () => 2 ** 30), "9663676416 bytes (9.00 GiB)"],
  ];
  assert.deepEqual(
    texts.map(([offers]) => offersText(offers)),
    texts.map(([, text]) => text),
  );
});
