import assert from "node:assert/strict";
import { test } from "node:test";

import { vendorProducts } from "../../../bench/kernels/vendor-product.ts";

test("a machine without the interpreter, or without torch or CUDA in it, gets a reason and no figures", async () => {
  const missing = await vendorProducts("no-such-python", [[1, 8, 8]]);
  assert.equal(missing.kind, "absent");
  assert.match(missing.kind === "absent" ? missing.reason : "", /no-such-python/);
});
