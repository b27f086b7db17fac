/** Expert FFNs on the CPU in plain loops: the oracle of the GPU's, and what `--device cpu` computes with. */

import type { ExpertDevice, ExpertSizes, NewSlots, StoredExpert } from "../expert-device.ts";
import {
  checkCommit,
  checkPacked,
  checkRun,
  checkSources,
  NO_SLOT,
  OutOfDeviceMemoryError,
  slotFormat,
} from "../expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../expert-format.ts";
import { unpackRow } from "../packing/quantize.ts";
import { expertBytes, packExpert } from "../weights.ts";
import { activate } from "./activation.ts";

/** Rows of one run at most. */
const MAX_ROWS = 4096;

/** A run gives way to timers and sockets after this many milliseconds. */
const YIELD_AFTER_MS = 10;

interface Layer {
  readonly formats: readonly ExpertFormat[];
  /** By slot, empty or loaded. */
  readonly experts: (PackedExpert | undefined)[];
}

/** Rows that go through one slot, and their mix weights; a row appears once per time that it names the slot. */
interface SlotGroup {
  readonly rows: number[];
  readonly weights: number[];
}

/** Sizes, and optionally the bytes that weights may take. */
export interface CpuExpertDeviceConfig extends ExpertSizes {
  readonly memoryBytes?: number;
}

/**
 * Creates an ExpertDevice in host memory that takes every format; products accumulate in f32, experts in f64.
 * Weights stay packed; a row of a matrix is unpacked for all rows of hidden states that go through it.
 */
export function createCpuExpertDevice(config: CpuExpertDeviceConfig): ExpertDevice {
  return new CpuExpertDevice(config);
}

class CpuExpertDevice implements ExpertDevice {
  readonly adapter = "cpu";
  readonly maxRows = MAX_ROWS;
  readonly lost = new Promise<string>(() => {});
  readonly #config: CpuExpertDeviceConfig;
  readonly #layers = new Map<number, Layer>();
  #tail: Promise<unknown> = Promise.resolve();
  /** Called and not answered. */
  #runs = 0;
  #closed = false;

  constructor(config: CpuExpertDeviceConfig) {
    this.#config = config;
  }

  allocate(layer: number, formats: readonly ExpertFormat[]): void {
    if (this.#layers.has(layer)) throw new RangeError(`layer ${layer} already has slots`);
    this.#checkMemory(layer, formats, []);
    this.#layers.set(layer, {
      formats: [...formats],
      experts: Array.from({ length: formats.length }),
    });
  }

  load(layer: number, slot: number, weights: StoredExpert): void {
    const format = slotFormat(layer, slot, this.#layer(layer).formats);
    const name = `layer ${layer} slot ${slot}`;
    this.loadPacked(layer, slot, packExpert(name, weights, this.#config, format));
  }

  loadPacked(layer: number, slot: number, expert: PackedExpert): void {
    const of = this.#layer(layer);
    checkPacked(`layer ${layer} slot ${slot}`, expert, slotFormat(layer, slot, of.formats));
    of.experts[slot] = expert;
  }

  *loadParts(layer: number, slot: number, expert: PackedExpert): Generator<number, void> {
    this.loadPacked(layer, slot, expert);
    yield expertBytes(this.#config, expert.format);
  }

  async read(layer: number, slot: number): Promise<PackedExpert> {
    const expert = this.#layer(layer).experts[slot];
    if (expert === undefined) {
      throw new RangeError(`layer ${layer} slot ${slot}: no expert is loaded`);
    }
    return expert;
  }

  async rearrange(
    layer: number,
    formats: readonly ExpertFormat[],
    from: readonly number[],
  ): Promise<NewSlots> {
    const old = this.#layers.get(layer);
    checkSources(layer, formats, from, old?.formats ?? []);
    // Experts are not copied here: what they take is never held twice.
    this.#checkMemory(layer, formats, old?.formats ?? []);
    const commit = () => {
      checkCommit(layer, this.#runs, old, this.#layers.get(layer));
      const experts = from.map((slot) => old?.experts[slot]);
      this.#layers.set(layer, { formats: [...formats], experts });
    };
    return { *prepareParts() {}, commit, discard: () => {} };
  }

  async settled(): Promise<void> {}

  run(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    this.#runs++;
    const result = this.#tail
      .then(() => this.#runNow(layer, rows, slots, weights))
      .finally(() => this.#runs--);
    this.#tail = result.catch(() => {});
    return result;
  }

  async #runNow(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    if (this.#closed) throw new Error("the cpu expert device is closed");
    const { hiddenSize } = this.#config;
    const { experts } = this.#layer(layer);
    const topK = checkRun(layer, rows.length / hiddenSize, slots, weights, {
      maxRows: MAX_ROWS,
      holds: (slot) => experts[slot] !== undefined,
    });
    const groups = groupBySlot(topK, slots, weights);
    // In f64: a row's sum in f32 does not depend on which slots its experts happen to be in.
    const sums = new Float64Array(rows.length);
    const ffn = new Ffn(this.#config);
    // Ascending slots: nor on what else is in the run.
    for (const [slot, group] of [...groups].sort(([a], [b]) => a - b)) {
      await ffn.add(sums, rows, experts[slot] as PackedExpert, group);
    }
    return new Float32Array(sums);
  }

  residentBytes(): number {
    let bytes = 0;
    for (const { formats } of this.#layers.values()) bytes += this.#bytesOf(formats);
    return bytes;
  }

  free(layer: number): void {
    this.#layers.delete(layer);
  }

  close(): void {
    this.#closed = true;
    this.#layers.clear();
  }

  /** Throws OutOfDeviceMemoryError where a layer can not have these slots in place of others. */
  #checkMemory(
    layer: number,
    formats: readonly ExpertFormat[],
    instead: readonly ExpertFormat[],
  ): void {
    const bytes = this.#bytesOf(formats);
    const limit = this.#config.memoryBytes ?? Number.POSITIVE_INFINITY;
    const left = limit - this.residentBytes() + this.#bytesOf(instead);
    if (bytes <= left) return;
    throw new OutOfDeviceMemoryError(`layer ${layer} with ${formats.length} experts`, bytes, left);
  }

  #bytesOf(formats: readonly ExpertFormat[]): number {
    return formats.reduce((sum, format) => sum + expertBytes(this.#config, format), 0);
  }

  #layer(layer: number): Layer {
    const of = this.#layers.get(layer);
    if (of === undefined) throw new RangeError(`layer ${layer} has no slots on this device`);
    return of;
  }
}

/** Groups the rows of a run by slot. */
function groupBySlot(
  topK: number,
  slots: Uint32Array,
  weights: Float32Array,
): Map<number, SlotGroup> {
  const groups = new Map<number, SlotGroup>();
  for (let i = 0; i < slots.length; i++) {
    const slot = slots[i];
    if (slot === NO_SLOT) continue;
    let group = groups.get(slot);
    if (group === undefined) groups.set(slot, (group = { rows: [], weights: [] }));
    group.rows.push(Math.floor(i / topK));
    group.weights.push(weights[i]);
  }
  return groups;
}

/** The FFN over the rows of one slot at a time. */
class Ffn {
  readonly #sizes: ExpertSizes;
  readonly #unpacked: readonly [Float32Array, Float32Array];
  #yieldedAt = performance.now();

  constructor(sizes: ExpertSizes) {
    const { hiddenSize, expertIntermediateSize } = sizes;
    this.#sizes = sizes;
    const longest = Math.max(hiddenSize, expertIntermediateSize);
    this.#unpacked = [new Float32Array(longest), new Float32Array(longest)];
  }

  /** Adds weight · down(activation(gate·row, up·row)) to the sum of each row of the group. */
  async add(
    sums: Float64Array,
    rows: Float32Array,
    expert: PackedExpert,
    group: SlotGroup,
  ): Promise<void> {
    const { hiddenSize, expertIntermediateSize: width, activation } = this.#sizes;
    const { format, biases } = expert;
    const gate = this.#unpacked[0].subarray(0, hiddenSize);
    const up = this.#unpacked[1].subarray(0, hiddenSize);
    const inner = new Float32Array(group.rows.length * width);
    for (let i = 0; i < width; i++) {
      unpackRow(format, expert.gate, i, hiddenSize, gate);
      unpackRow(format, expert.up, i, hiddenSize, up);
      const gateBias = biases === undefined ? 0 : biases.gate[i];
      const upBias = biases === undefined ? 0 : biases.up[i];
      for (const [index, row] of group.rows.entries()) {
        const at = row * hiddenSize;
        inner[index * width + i] = activate(
          activation,
          dot(gate, rows, at) + gateBias,
          dot(up, rows, at) + upBias,
        );
      }
      if (this.#isLate()) await this.#giveWay();
    }
    const down = this.#unpacked[0].subarray(0, width);
    for (let h = 0; h < hiddenSize; h++) {
      unpackRow(format, expert.down, h, width, down);
      const bias = biases === undefined ? 0 : biases.down[h];
      for (const [index, row] of group.rows.entries()) {
        sums[row * hiddenSize + h] +=
          group.weights[index] * (dot(down, inner, index * width) + bias);
      }
      if (this.#isLate()) await this.#giveWay();
    }
  }

  #isLate(): boolean {
    return performance.now() - this.#yieldedAt > YIELD_AFTER_MS;
  }

  /** Lets timers and sockets have their turn. */
  async #giveWay(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#yieldedAt = performance.now();
  }
}

/** Dot product of `matrixRow` with the vector that begins at `offset`, accumulated in f32. */
function dot(matrixRow: Float32Array, vectors: Float32Array, offset: number): number {
  const { fround } = Math;
  // Four chains of additions, since one would wait for each addition's latency.
  let a = fround(0);
  let b = fround(0);
  let c = fround(0);
  let d = fround(0);
  // Columns are a multiple of 8.
  for (let i = 0; i < matrixRow.length; i += 4) {
    a = fround(a + fround(matrixRow[i] * vectors[offset + i]));
    b = fround(b + fround(matrixRow[i + 1] * vectors[offset + i + 1]));
    c = fround(c + fround(matrixRow[i + 2] * vectors[offset + i + 2]));
    d = fround(d + fround(matrixRow[i + 3] * vectors[offset + i + 3]));
  }
  return fround(fround(a + b) + fround(c + d));
}
