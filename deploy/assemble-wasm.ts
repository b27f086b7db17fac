/** `npm run wasm`: core/packing/packing.wat → packing.wasm, which is committed; a test holds the two together. */

import { readFile, writeFile } from "node:fs/promises";

import wabt from "wabt";

const core = new URL("../core/packing/", import.meta.url);
const source = await readFile(new URL("packing.wat", core), "utf8");
const module = (await wabt()).parseWat("packing.wat", source, {
  simd: true,
  relaxed_simd: true,
  multi_value: true,
});
module.validate();
await writeFile(new URL("packing.wasm", core), module.toBinary({}).buffer);
