/** Expert FFNs on the CPU in plain loops: the oracle of the GPU's, and what `--device cpu` computes with. */

import type { ExpertDevice, ExpertSizes, ExpertWeights, WeightsDtype } from "../expert-device.ts";
import { checkRun, NO_SLOT, OutOfDeviceMemoryError } from "../expert-device.ts";
import { convertExpert, expertBytes } from "../weights.ts";

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
    return expertBytes(this.#config, "f32");
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
    const name = `layer ${layer} slot ${slot}`;
    const { gate, up, down } = convertExpert(name, weights, this.#config, this.#dtype);
    // Copies: values in f32 may be a view of the caller's bytes.
    slots[slot] = {
      gate: new Float32Array(gate),
      up: new Float32Array(up),
      down: new Float32Array(down),
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
    const topK = checkRun(layer, rows.length / hiddenSize, slots, weights, {
      maxRows: MAX_ROWS,
      holds: (slot) => experts[slot] !== undefined,
    });
    const groups = groupBySlot(topK, slots, weights);
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
