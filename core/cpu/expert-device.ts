/** Expert FFNs on the CPU in plain loops: the oracle of the GPU's, and what `--device cpu` computes with. */

import type { ExpertDevice, ExpertSizes, ExpertWeights, WeightsDtype } from "../expert-device.ts";
import { NO_SLOT, OutOfDeviceMemoryError } from "../expert-device.ts";
import type { HostTensor } from "../tensor.ts";
import { F16_MAX, f32ToF16, maxMagnitude, toF32 } from "../tensor.ts";

/** Rows of one run at most. */
const MAX_ROWS = 4096;

/** A run gives way to timers and sockets after this many milliseconds. */
const YIELD_AFTER_MS = 10;

interface Expert {
  /** [intermediateSize, hiddenSize] */
  readonly gate: Float32Array;
  /** [intermediateSize, hiddenSize] */
  readonly up: Float32Array;
  /** [hiddenSize, intermediateSize] */
  readonly down: Float32Array;
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
 * Creates an ExpertDevice in host memory that accumulates in f32.
 * Weights "f16" rounds every value to f16 on load (kept as f32), so that it judges a device that stores f16.
 */
export function createCpuExpertDevice(
  config: CpuExpertDeviceConfig,
  weights: WeightsDtype,
): ExpertDevice {
  return new CpuExpertDevice(config, weights);
}

class CpuExpertDevice implements ExpertDevice {
  readonly adapter = "cpu";
  readonly maxRows = MAX_ROWS;
  readonly lost = new Promise<string>(() => {});
  readonly #config: CpuExpertDeviceConfig;
  readonly #dtype: WeightsDtype;
  /** By layer: its slots, empty or loaded. */
  readonly #layers = new Map<number, (Expert | undefined)[]>();
  #tail: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(config: CpuExpertDeviceConfig, dtype: WeightsDtype) {
    this.#config = config;
    this.#dtype = dtype;
  }

  get #expertBytes(): number {
    return 3 * this.#config.hiddenSize * this.#config.expertIntermediateSize * 4;
  }

  allocate(layer: number, numSlots: number): void {
    if (this.#layers.has(layer)) throw new RangeError(`layer ${layer} already has slots`);
    const bytes = numSlots * this.#expertBytes;
    const left = (this.#config.memoryBytes ?? Number.POSITIVE_INFINITY) - this.residentBytes();
    if (bytes > left) {
      throw new OutOfDeviceMemoryError(`layer ${layer} with ${numSlots} experts`, bytes, left);
    }
    this.#layers.set(layer, Array.from({ length: numSlots }));
  }

  load(layer: number, slot: number, weights: ExpertWeights): void {
    const slots = this.#slotsOf(layer);
    if (!(slot < slots.length)) {
      throw new RangeError(`layer ${layer} slot ${slot}: the layer has ${slots.length} slots`);
    }
    const { hiddenSize, expertIntermediateSize } = this.#config;
    const inner = [expertIntermediateSize, hiddenSize];
    const at = `layer ${layer} slot ${slot}`;
    slots[slot] = {
      gate: convert(weights.gate, inner, this.#dtype, `${at} gate`),
      up: convert(weights.up, inner, this.#dtype, `${at} up`),
      down: convert(weights.down, [hiddenSize, expertIntermediateSize], this.#dtype, `${at} down`),
    };
  }

  run(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    const result = this.#tail.then(() => this.#runNow(layer, rows, slots, weights));
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
    const experts = this.#slotsOf(layer);
    const groups = groupBySlot(layer, rows.length / hiddenSize, slots, weights, experts);
    const sums = new Float32Array(rows.length);
    let yieldedAt = performance.now();
    // Ascending slots: a row's sum does not depend on what else is in the run.
    for (const [slot, group] of [...groups].sort(([a], [b]) => a - b)) {
      const expert = experts[slot] as Expert;
      for (let i = 0; i < group.rows.length; i++) {
        const start = group.rows[i] * hiddenSize;
        const row = rows.subarray(start, start + hiddenSize);
        addExpert(sums.subarray(start, start + hiddenSize), row, expert, group.weights[i]);
        if (performance.now() - yieldedAt > YIELD_AFTER_MS) {
          await new Promise((resolve) => setImmediate(resolve));
          yieldedAt = performance.now();
        }
      }
    }
    return sums;
  }

  residentBytes(): number {
    let slots = 0;
    for (const layer of this.#layers.values()) slots += layer.length;
    return slots * this.#expertBytes;
  }

  free(layer: number): void {
    this.#layers.delete(layer);
  }

  close(): void {
    this.#closed = true;
    this.#layers.clear();
  }

  #slotsOf(layer: number): (Expert | undefined)[] {
    const slots = this.#layers.get(layer);
    if (slots === undefined) throw new RangeError(`layer ${layer} has no slots on this device`);
    return slots;
  }
}

/** Groups the rows of a run by slot. Throws RangeError where a size does not fit or a slot holds no expert. */
function groupBySlot(
  layer: number,
  numRows: number,
  slots: Uint32Array,
  weights: Float32Array,
  experts: readonly (Expert | undefined)[],
): Map<number, SlotGroup> {
  if (!Number.isInteger(numRows) || numRows < 1 || numRows > MAX_ROWS) {
    throw new RangeError(`layer ${layer}: ${numRows} rows, expected 1 to ${MAX_ROWS}`);
  }
  const topK = slots.length / numRows;
  if (!Number.isInteger(topK) || topK < 1 || weights.length !== slots.length) {
    throw new RangeError(
      `layer ${layer}: ${slots.length} slots and ${weights.length} weights for ${numRows} rows`,
    );
  }
  const groups = new Map<number, SlotGroup>();
  for (let i = 0; i < slots.length; i++) {
    const slot = slots[i];
    if (slot === NO_SLOT) continue;
    if (experts[slot] === undefined) {
      throw new RangeError(`layer ${layer} slot ${slot}: no expert is loaded`);
    }
    let group = groups.get(slot);
    if (group === undefined) groups.set(slot, (group = { rows: [], weights: [] }));
    group.rows.push(Math.floor(i / topK));
    group.weights.push(weights[i]);
  }
  return groups;
}

/** Adds weight · down(silu(gate·row) * up·row) to `sum`. */
function addExpert(sum: Float32Array, row: Float32Array, expert: Expert, weight: number): void {
  const hiddenSize = row.length;
  const intermediateSize = expert.gate.length / hiddenSize;
  const inner = new Float32Array(intermediateSize);
  for (let i = 0; i < intermediateSize; i++) {
    const gate = dot(expert.gate, i * hiddenSize, row);
    const up = dot(expert.up, i * hiddenSize, row);
    inner[i] = (gate / (1 + Math.exp(-gate))) * up;
  }
  for (let h = 0; h < hiddenSize; h++) {
    sum[h] += weight * dot(expert.down, h * intermediateSize, inner);
  }
}

/** Dot product of `vector` with the matrix row that begins at `offset`, accumulated in f32. */
function dot(matrix: Float32Array, offset: number, vector: Float32Array): number {
  const { fround } = Math;
  // Four chains of additions, since one would wait for each addition's latency.
  let a = fround(0);
  let b = fround(0);
  let c = fround(0);
  let d = fround(0);
  const quads = vector.length & ~3;
  for (let i = 0; i < quads; i += 4) {
    a = fround(a + fround(matrix[offset + i] * vector[i]));
    b = fround(b + fround(matrix[offset + i + 1] * vector[i + 1]));
    c = fround(c + fround(matrix[offset + i + 2] * vector[i + 2]));
    d = fround(d + fround(matrix[offset + i + 3] * vector[i + 3]));
  }
  for (let i = quads; i < vector.length; i++) {
    a = fround(a + fround(matrix[offset + i] * vector[i]));
  }
  return fround(fround(a + b) + fround(c + d));
}

/** Values of a weight tensor in a fresh array, rounded to `dtype`. Throws RangeError on a wrong shape or an f16 overflow. */
function convert(
  tensor: HostTensor,
  shape: readonly number[],
  dtype: WeightsDtype,
  what: string,
): Float32Array {
  if (tensor.shape.length !== 2 || tensor.shape.some((size, axis) => size !== shape[axis])) {
    throw new RangeError(
      `${what}: shape [${tensor.shape.join(", ")}], expected [${shape.join(", ")}]`,
    );
  }
  const values = toF32(tensor);
  if (dtype === "f32") return Float32Array.from(values);
  const largest = maxMagnitude(values);
  if (!(largest <= F16_MAX)) {
    throw new RangeError(
      `${what}: a value of magnitude ${largest} overflows f16, whose limit is ${F16_MAX}; use --weights f32`,
    );
  }
  return Float32Array.from(f32ToF16(values));
}
