/** Experts that left the device, packed, in host memory within a bound: the ones that left first go first. */

import type { ExpertSizes } from "../core/expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../core/expert-format.ts";
import { expertBytes } from "../core/weights.ts";

/** Which expert, in which format. */
export interface CachedExpert {
  readonly layer: number;
  readonly expert: number;
  readonly format: ExpertFormat;
}

/** Keeps experts up to a number of bytes. */
export class HostCache {
  readonly #sizes: ExpertSizes;
  readonly #limit: number;
  /** In the order in which they came. */
  readonly #kept = new Map<string, PackedExpert>();
  #bytes = 0;

  constructor(sizes: ExpertSizes, limitBytes: number) {
    this.#sizes = sizes;
    this.#limit = limitBytes;
  }

  /** Bytes that are kept. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps an expert, and lets others go for it; one that is larger than the bound is not kept. */
  put(layer: number, expert: number, packed: PackedExpert): void {
    const size = expertBytes(this.#sizes, packed.format);
    this.take({ layer, expert, format: packed.format });
    if (size > this.#limit) return;
    for (const [key, oldest] of this.#kept) {
      if (this.#bytes + size <= this.#limit) break;
      this.#kept.delete(key);
      this.#bytes -= expertBytes(this.#sizes, oldest.format);
    }
    this.#kept.set(keyOf({ layer, expert, format: packed.format }), packed);
    this.#bytes += size;
  }

  /** Takes an expert out: it goes to the device again. */
  take(wanted: CachedExpert): PackedExpert | undefined {
    const key = keyOf(wanted);
    const packed = this.#kept.get(key);
    if (packed === undefined) return undefined;
    this.#kept.delete(key);
    this.#bytes -= expertBytes(this.#sizes, packed.format);
    return packed;
  }

  /** An expert that stays; undefined where it is not kept. */
  look(wanted: CachedExpert): PackedExpert | undefined {
    return this.#kept.get(keyOf(wanted));
  }
}

function keyOf({ layer, expert, format }: CachedExpert): string {
  return `${layer} ${expert} ${format}`;
}
