import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";

import { domainWindows, readReference } from "../../../bench/held-out/scorer.ts";

const MODEL = path.join(import.meta.dirname, "../../../models/demo-moe");

test("the held-out texts are cut into the windows that the reference was computed on", async () => {
  const reference = await readReference(MODEL);
  const domains = Object.entries(reference.domains);
  assert.equal(domains.length, 6);
  for (const [domain, { windows, window_nll: nll }] of domains) {
    const cut = await domainWindows(MODEL, reference, domain);
    assert.equal(cut.length, windows, domain);
    assert.equal(nll.length, windows, domain);
    assert.ok(cut.slice(0, -1).every((window) => window.length === 512));
  }
});

test("a text of another number of tokens than the reference's is refused", async () => {
  const reference = await readReference(MODEL);
  const changed = {
    ...reference,
    domains: { maths: { ...reference.domains["maths"], tokens: 7 } },
  };
  await assert.rejects(domainWindows(MODEL, changed, "maths"), /maths.txt has \d+ tokens.* has 7/);
});
