import assert from "node:assert/strict";
import { describe, it, test } from "node:test";

import {
  checkHelloCrc,
  checkHellos,
  checkTolerance,
  decideExperts,
  decideWeights,
  HandshakeError,
  helloCrc,
} from "../../core/handshake.ts";
import { ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";

describe("a handshake", () => {
  const hello = { protocolVersion: 1, modelHash: "aa", weights: "auto", experts: "auto" };

  it("passes where everything agrees, auto with any dtype", () => {
    for (const weights of ["auto", "f16", "f32"]) {
      checkHellos(hello, { ...hello, weights });
      checkHellos({ ...hello, weights }, hello);
      checkHellos({ ...hello, weights }, { ...hello, weights });
    }
  });

  it("names each field that does not agree, and both values", () => {
    const cases: [Partial<typeof hello>, Partial<typeof hello>, RegExp][] = [
      [{ protocolVersion: 1 }, { protocolVersion: 2 }, /protocol_version.* 1,.* 2/],
      [{ modelHash: "aa" }, { modelHash: "bb" }, /model_hash.* aa,.* bb/],
      [{ weights: "f16" }, { weights: "f32" }, /weights.* f16,.* f32/],
      [{ weights: "int4" }, { weights: "f32" }, /weights.* router .*"int4"/],
      [{}, { weights: "" }, /weights.* shard .*""/],
      [{ experts: "int8" }, { experts: "f16" }, /experts: the router has int8, the shard has f16/],
      [{}, { experts: "q4" }, /experts: the shard has "q4", expected auto, f32, f16, int8/],
      [{}, { modelHash: "bb", protocolVersion: 3 }, /protocol_version.*; model_hash/],
    ];
    for (const [router, shard, text] of cases) {
      assert.throws(
        () => checkHellos({ ...hello, ...router }, { ...hello, ...shard }),
        (error) => error instanceof HandshakeError && text.test(error.message),
      );
    }
  });
});

describe("the cluster's dtype of weights", () => {
  const auto = (shaderF16: boolean) => ({ weights: "auto" as const, shaderF16 });

  it("is f16 where every adapter has shader-f16, else f32", () => {
    assert.equal(decideWeights([auto(true), auto(true)]), "f16");
    assert.equal(decideWeights([auto(true), auto(false)]), "f32");
  });

  it("is what any member asks for", () => {
    assert.equal(decideWeights([auto(true), { weights: "f32", shaderF16: true }]), "f32");
    assert.equal(decideWeights([auto(false), { weights: "f16", shaderF16: true }]), "f16");
  });

  it("is refused where members ask for different ones", () => {
    const f16 = { weights: "f16" as const, shaderF16: true };
    assert.throws(() => decideWeights([f16, { ...f16, weights: "f32" }]), /f16 and f32/);
  });
});

test("experts come in what any member asks for, and different asks are refused", () => {
  assert.equal(decideExperts(["auto", "auto"]), "auto");
  assert.equal(decideExperts(["auto", "int4-g64", "int4-g64"]), "int4-g64");
  assert.throws(
    () => decideExperts(["int8", "auto", "mxfp4"]),
    new HandshakeError("experts: int8 and mxfp4 are asked for"),
  );
});

test("a hello with a flipped bit in any field is refused by its checksum", () => {
  const hello = ShardHello.fromPartial({ rank: 5, modelHash: "aa", memoryBytes: 2 ** 33 });
  const sent = { ...hello, crc32: helloCrc(hello) };
  checkHelloCrc(ShardHello.decode(ShardHello.encode(sent).finish()));
  for (const change of [{ rank: 4 }, { memoryBytes: 2 ** 32 }, { adapter: "x" }, { crc32: 0 }]) {
    assert.throws(
      () => checkHelloCrc({ ...sent, ...change }),
      (error) =>
        error instanceof HandshakeError && /crc32: the shard's hello has/.test(error.message),
    );
  }
});

test("a shard's kernels may declare the error of f16 products at most", () => {
  for (const fine of [0, 1e-6, 5e-4, Math.fround(5e-4)]) checkTolerance(fine);
  for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY, -1e-6, 6e-4]) {
    assert.throws(
      () => checkTolerance(wrong),
      (error) => error instanceof HandshakeError && /tolerance.* 0 to 0\.0005/.test(error.message),
    );
  }
});
