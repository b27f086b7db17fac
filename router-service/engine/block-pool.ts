/** The KV cache's blocks: who holds them, and which prefixes of earlier sequences they still contain. */

import { BLOCK_SIZE } from "./model-runner.ts";

/** What a cached block contains: the tokens of one whole block after those of its parent. */
interface CachedBlock {
  readonly key: string;
  /** Names this content for good; a block that is cached again gets a new one. */
  readonly serial: number;
}

/** Serial of the parent of a sequence's first block. */
const ROOT = 0;

/**
 * `numBlocks` blocks with reference counts, and a hash table from (parent block, its 16 token ids) to the block
 * that contains them. The key is exact, so different prefixes never meet. Blocks that nobody holds keep their content
 * until they are needed; the least recently used goes first. Whoever holds a cached block holds its parents, and
 * blocks are released last position first: so a parent is always used later than its children, and outlives them.
 */
export class BlockPool {
  readonly numBlocks: number;
  readonly #references: Uint32Array;
  readonly #cached: (CachedBlock | undefined)[];
  readonly #byKey = new Map<string, number>();
  /** Blocks without holder and content. */
  readonly #empty: number[];
  /** Blocks with content that nobody holds, least recently used first. */
  readonly #idle = new Set<number>();
  #serial = ROOT;

  constructor(numBlocks: number) {
    this.numBlocks = numBlocks;
    this.#references = new Uint32Array(numBlocks);
    this.#cached = Array.from({ length: numBlocks });
    this.#empty = Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i);
  }

  /** Blocks that nobody holds. */
  get numFree(): number {
    return this.#empty.length + this.#idle.size;
  }

  /** Blocks of the longest cached prefix, `maxBlocks` at most; they are not held until `reuse`. */
  lookup(tokenIds: readonly number[], maxBlocks: number): number[] {
    const blocks: number[] = [];
    let parent: number | undefined;
    while (blocks.length < maxBlocks) {
      const block = this.#byKey.get(this.#key(parent, tokenIds, blocks.length));
      if (block === undefined) break;
      blocks.push(block);
      parent = block;
    }
    return blocks;
  }

  /** Whether `count` blocks can be had beside those of `reused`. */
  canAllocate(count: number, reused: readonly number[] = []): boolean {
    let idle = 0;
    for (const block of reused) if (this.#references[block] === 0) idle++;
    return count <= this.numFree - idle;
  }

  /** Holds blocks that `lookup` found. */
  reuse(blocks: readonly number[]): void {
    for (const block of blocks) {
      if (this.#references[block]++ === 0) this.#idle.delete(block);
    }
  }

  /** Holds `count` blocks without content. Throws unless `canAllocate`. */
  allocate(count: number): number[] {
    if (!this.canAllocate(count)) {
      throw new Error(`${count} KV blocks wanted, ${this.numFree} of ${this.numBlocks} are free`);
    }
    return Array.from({ length: count }, () => {
      const block = this.#empty.pop() ?? this.#evict();
      this.#references[block] = 1;
      return block;
    });
  }

  /**
   * Makes the content of a held block, the `index`-th of its sequence, known to later lookups. `parent` is the block
   * before it, registered as well; undefined where index is 0.
   * Returns the block to hold in its stead from now on: another one if that has the same content already.
   */
  register(
    block: number,
    parent: number | undefined,
    tokenIds: readonly number[],
    index: number,
  ): number {
    const key = this.#key(parent, tokenIds, index);
    const known = this.#byKey.get(key);
    if (known === block) return block;
    if (known !== undefined) {
      this.reuse([known]);
      this.release([block]);
      return known;
    }
    if (this.#cached[block] !== undefined) {
      throw new Error(`KV block ${block} is registered with other content`);
    }
    this.#cached[block] = { key, serial: ++this.#serial };
    this.#byKey.set(key, block);
    return block;
  }

  /** Lets go of one sequence's blocks, given in order of position. */
  release(blocks: readonly number[]): void {
    for (const block of blocks.toReversed()) {
      if (this.#references[block] === 0) throw new Error(`KV block ${block} is released twice`);
      if (--this.#references[block] > 0) continue;
      if (this.#cached[block] === undefined) this.#empty.push(block);
      else this.#idle.add(block);
    }
  }

  /** The least recently used block that nobody holds, its content forgotten. */
  #evict(): number {
    const [block] = this.#idle;
    const content = this.#cached[block];
    if (content === undefined) throw new Error("no idle KV block to evict");
    this.#idle.delete(block);
    this.#byKey.delete(content.key);
    this.#cached[block] = undefined;
    return block;
  }

  #key(parent: number | undefined, tokenIds: readonly number[], index: number): string {
    const serial = parent === undefined ? ROOT : this.#cached[parent]?.serial;
    if (serial === undefined) throw new Error(`KV block ${parent} is parent but not registered`);
    const ids = tokenIds.slice(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE);
    return `${serial}:${ids.join(",")}`;
  }
}
