import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { packRows, type WireSetting } from "../../core/wire-rows.ts";
import { roundRows } from "../../core/cpu/operations.ts";
import {
  decodeDispatch,
  decodePartialSum,
  type DispatchHeader,
  type DispatchRows,
  dispatchCrc,
  DispatchRefusedError,
  encodeDispatch,
  encodePartialSum,
  NO_EXPERT,
  placementCrc,
} from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import { Dispatch, DispatchErrorCode, WireDtype } from "../../proto/gen/switchyard/v1/expert.ts";
import { testValues } from "../../bench/rig/expert-reference.ts";

const LIMITS = { hiddenSize: 8, topK: 2, maxRows: 16 };
const HEADER = {
  dispatchId: 7,
  epoch: 1,
  layer: 2,
  timeoutMs: 2000,
  hiddenSize: 8,
  topK: 2,
  traceparent: "",
};

const payload = (numRows: number, wire: WireSetting = "f16") => ({
  rows: roundRows(testValues(numRows * 8, 1), 8, wire),
  expertIds: Uint16Array.from({ length: numRows * 2 }, (_, i) => (i % 3 ? i : NO_EXPERT)),
  topkWeights: testValues(numRows * 2, 2),
});

/** The message of rows that are packed for it. */
function encode(header: DispatchHeader, of: DispatchRows, wire: WireSetting): Dispatch {
  return encodeDispatch(header, { ...of, rows: packRows(of.rows, header.hiddenSize, wire) });
}

/** The message as the other end has it: its bytes are views at any offset. */
const sent = (message: Dispatch) => Dispatch.decode(Dispatch.encode(message).finish());

const refused = (code: DispatchErrorCode, text: RegExp) => (error: unknown) =>
  error instanceof DispatchRefusedError && error.code === code && text.test(error.message);
const INVALID = DispatchErrorCode.DISPATCH_ERROR_CODE_INVALID;
const CHECKSUM = DispatchErrorCode.DISPATCH_ERROR_CODE_CHECKSUM;

describe("a dispatch", () => {
  for (const [wire, bytes] of [
    ["f16", 2],
    ["f32", 4],
    ["int8", 1],
  ] as const) {
    it(`brings rows, ids and weights over the wire in ${wire}`, () => {
      const message = encode(HEADER, payload(5, wire), wire);
      assert.equal(message.hiddenStates.length, 5 * 8 * bytes);
      assert.equal(message.rowScales.length, wire === "int8" ? 5 * 4 : 0);
      assert.deepEqual(decodeDispatch(sent(message), LIMITS), payload(5, wire));
    });
  }

  it("goes in f32 where a value lies beyond the range of f16, its other rows unchanged", () => {
    for (const beyond of [65504.01, -65505, Number.POSITIVE_INFINITY]) {
      const rows = payload(3);
      rows.rows[12] = beyond;
      const message = encode(HEADER, rows, "f16");
      assert.equal(message.dtype, WireDtype.WIRE_DTYPE_F32);
      assert.deepEqual(decodeDispatch(sent(message), LIMITS), rows);
    }
    const atLimit = payload(3);
    atLimit.rows[12] = -65504;
    assert.equal(encode(HEADER, atLimit, "f16").dtype, WireDtype.WIRE_DTYPE_F16);
  });

  it("goes in f32 where a row is not exact in int8", () => {
    const rows = payload(3, "int8");
    rows.rows[12] = Number.POSITIVE_INFINITY;
    const message = encode(HEADER, rows, "int8");
    assert.equal(message.dtype, WireDtype.WIRE_DTYPE_F32);
    assert.deepEqual(decodeDispatch(sent(message), LIMITS), rows);
  });

  it("is refused by the name of the field whose size or dtype is not the model's", () => {
    const message = encode(HEADER, payload(4), "f32");
    const changes: [Partial<Dispatch>, RegExp][] = [
      [{ hiddenSize: 16 }, /hidden_size 16, expected 8/],
      [{ topK: 4 }, /top_k 4, expected 2/],
      [{ numRows: 0 }, /num_rows 0, expected 1 to 16/],
      [{ numRows: 17 }, /num_rows 17, expected 1 to 16/],
      [{ numRows: 3 }, /hidden_states 128, expected 96/],
      [{ dtype: WireDtype.WIRE_DTYPE_UNSPECIFIED }, /dtype 0/],
      [{ dtype: WireDtype.WIRE_DTYPE_F16 }, /hidden_states 128, expected 64/],
      [{ hiddenStates: message.hiddenStates.subarray(1) }, /hidden_states 127, expected 128/],
      [{ expertIds: new Uint8Array(15) }, /expert_ids 15, expected 16/],
      [{ topkWeights: new Uint8Array(0) }, /topk_weights 0, expected 32/],
      [{ rowScales: new Uint8Array(16) }, /row_scales 16, expected 0/],
      [{ dtype: WireDtype.WIRE_DTYPE_INT8 }, /hidden_states 128, expected 32/],
    ];
    for (const [change, text] of changes) {
      const changed = { ...message, ...change };
      changed.crc32 = dispatchCrc(changed);
      assert.throws(() => decodeDispatch(sent(changed), LIMITS), refused(INVALID, text));
    }
  });

  it("with any one field changed does not pass its checksum", () => {
    const message = encode(HEADER, payload(4), "f16");
    const fields = ["dispatchId", "epoch", "layer", "timeoutMs", "numRows", "hiddenSize"] as const;
    for (const field of [...fields, "topK", "crc32"] as const) {
      const changed = { ...message, [field]: message[field] ^ 1 };
      assert.throws(() => decodeDispatch(changed, LIMITS), refused(CHECKSUM, /crc32/), field);
    }
  });

  it("with any one bit of its payload flipped does not pass its checksum", () => {
    const fields = ["hiddenStates", "expertIds", "topkWeights", "rowScales"] as const;
    fc.assert(
      fc.property(
        fc.constantFrom(...fields),
        fc.nat(),
        fc.integer({ min: 1, max: 16 }),
        fc.constantFrom("f16" as const, "f32" as const, "int8" as const),
        (field, where, numRows, wire) => {
          fc.pre(field !== "rowScales" || wire === "int8");
          const message = sent(encode(HEADER, payload(numRows, wire), wire));
          const bit = where % (message[field].length * 8);
          message[field][bit >> 3] ^= 1 << (bit & 7);
          assert.throws(() => decodeDispatch(message, LIMITS), refused(CHECKSUM, /crc32/));
        },
      ),
    );
  });
});

describe("a partial sum", () => {
  const sums = testValues(3 * 8, 4);
  const message = encodePartialSum(9, 3, sums, { queueUs: 1, computeUs: 2 });

  it("comes back as it was", () => {
    assert.deepEqual(decodePartialSum(message, 3, 8), sums);
  });

  it("is refused where bits or sizes are not the dispatch's", () => {
    const flipped = { ...message, sums: message.sums.slice() };
    flipped.sums[5] ^= 4;
    assert.throws(() => decodePartialSum(flipped, 3, 8), refused(CHECKSUM, /crc32/));
    const other = { ...message, dispatchId: 8 };
    assert.throws(() => decodePartialSum(other, 3, 8), refused(CHECKSUM, /crc32/));
    assert.throws(() => decodePartialSum(message, 4, 8), refused(INVALID, /num_rows.*3.*4/));
    const short = encodePartialSum(9, 3, sums.subarray(8), { queueUs: 1, computeUs: 2 });
    assert.throws(() => decodePartialSum(short, 3, 8), refused(INVALID, /sums 64, expected 96/));
  });
});

describe("a placement's checksum", () => {
  it("changes with every field", () => {
    const placement: ShardPlacement = {
      epoch: 1,
      weights: 2,
      expertFormat: 1,
      oldestLiveEpoch: 1,
      peers: [{ address: "a:1", layers: [{ layer: 2, expertIds: [4] }] }],
      crc32: 0,
      layers: [
        { layer: 0, experts: [{ expertId: 0, splitWeight: 1, format: 0 }] },
        { layer: 1, experts: [{ expertId: 1, splitWeight: 0.5, format: 0 }] },
      ],
    };
    const [first, second] = placement.layers;
    const variants: ShardPlacement[] = [
      placement,
      { ...placement, epoch: 2 },
      { ...placement, weights: 1 },
      { ...placement, expertFormat: 2 },
      {
        ...placement,
        layers: [first, { layer: 1, experts: [{ expertId: 1, splitWeight: 0.5, format: 3 }] }],
      },
      { ...placement, oldestLiveEpoch: 0 },
      { ...placement, layers: [first] },
      { ...placement, layers: [second, first] },
      { ...placement, layers: [first, { ...second, layer: 2 }] },
      { ...placement, layers: [first, { ...second, experts: [] }] },
      {
        ...placement,
        layers: [first, { layer: 1, experts: [{ expertId: 1, splitWeight: 1, format: 0 }] }],
      },
      { ...placement, peers: [] },
      { ...placement, peers: [{ ...placement.peers[0], address: "a:2" }] },
      { ...placement, peers: [{ address: "a:1", layers: [{ layer: 3, expertIds: [4] }] }] },
      { ...placement, peers: [{ address: "a:1", layers: [{ layer: 2, expertIds: [5] }] }] },
    ];
    assert.equal(new Set(variants.map(placementCrc)).size, variants.length);
  });
});

it("checksums are the usual CRC-32", () => {
  const times = { queueUs: 0, computeUs: 0 };
  // Of twelve zero bytes: dispatch_id as u64 and num_rows as u32.
  assert.equal(encodePartialSum(0, 0, new Float32Array(), times).crc32, 0x7bd5c66f);
});
