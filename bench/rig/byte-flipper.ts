/** Flips bits of a byte stream now and then: anywhere in it, or within the messages that HTTP/2 carries. */

import { drawBelow, type Random } from "../../core/random.ts";

/** How bytes are corrupted. */
export interface Corruption {
  /**
   * `anywhere`: any byte, so that frames of HTTP/2 itself may break. `payload`: one byte in the middle of a large DATA
   * frame, where the tensors of a dispatch or of its answer are; all frames stay whole. `length`: in the length that gRPC
   * writes before a message, so that its reader waits for bytes that do not come; all frames stay whole.
   */
  readonly where: "anywhere" | "payload" | "length";
  /** One bit of about so many bytes. */
  readonly everyBytes: number;
}

/** Type of HTTP/2's DATA frames. */
const DATA = 0;

/** Length of a frame's header: 3 bytes of length, type, flags, 4 of stream. */
const HEADER_BYTES = 9;

/** Bytes that a client sends before its first frame. */
const PREFACE_BYTES = 24;

/** Byte of a message's prefix (1 of flags, 4 of length) whose bits stand for 64 KiB to 8 MiB. */
const LENGTH_BYTE = 2;

/** Smaller DATA frames hold no tensors. */
const MIN_TENSOR_FRAME = 200;

/** Follows one direction of an HTTP/2 connection and flips bits in it. */
export class ByteFlipper {
  readonly #random: Random;
  readonly #onFlip: () => void;
  readonly #header: number[] = [];
  /** Bytes until the next frame header. */
  #untilHeader: number;
  /** Bytes until the one that is to be flipped in the current frame; negative: none. */
  #untilVictim = -1;
  /** Bytes until the next flip is due. */
  #untilDue: number | undefined;

  /** `fromClient`: the direction begins with the connection preface. */
  constructor(fromClient: boolean, random: Random, onFlip: () => void) {
    this.#untilHeader = fromClient ? PREFACE_BYTES : 0;
    this.#random = random;
    this.#onFlip = onFlip;
  }

  /** Changes `bytes`, the next ones of the stream, in place where a flip is due. */
  flip(bytes: Uint8Array, corruption: Corruption | undefined): void {
    if (corruption === undefined) {
      this.#untilDue = undefined;
      this.#pass(bytes);
      return;
    }
    this.#untilDue ??= this.#nextDue(corruption);
    for (let at = 0; at < bytes.length; at++) {
      this.#follow(bytes[at], corruption);
      if (this.#untilDue > 0) this.#untilDue--;
      const hit =
        corruption.where === "anywhere" ? this.#untilDue === 0 : this.#untilVictim-- === 0;
      if (!hit) continue;
      bytes[at] ^= 1 << drawBelow(this.#random, 8);
      this.#untilDue = this.#nextDue(corruption);
      this.#onFlip();
    }
  }

  /** Its mean is everyBytes; random, so that flips hit all parts of a regular stream. */
  #nextDue({ everyBytes }: Corruption): number {
    return 1 + drawBelow(this.#random, 2 * everyBytes);
  }

  /** Keeps track of the frames where nothing is to be flipped. */
  #pass(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at++) {
      const inFrame = Math.min(this.#untilHeader, bytes.length - at);
      this.#untilHeader -= inFrame;
      at += inFrame;
      if (at < bytes.length) this.#follow(bytes[at], undefined);
    }
  }

  /** Keeps track of the frames; at the header of a large DATA frame it chooses the victim, if a flip is due. */
  #follow(byte: number, corruption: Corruption | undefined): void {
    if (this.#untilHeader > 0) {
      this.#untilHeader--;
      return;
    }
    this.#header.push(byte);
    if (this.#header.length < HEADER_BYTES) return;
    const [high, middle, low, type] = this.#header.splice(0);
    const length = (high << 16) | (middle << 8) | low;
    this.#untilHeader = length;
    this.#untilVictim = -1;
    if (corruption === undefined || this.#untilDue !== 0 || type !== DATA) return;
    if (corruption.where === "length" && length > LENGTH_BYTE) {
      // A message of several frames is hit in its payload where this is not its first one.
      this.#untilVictim = 1 + LENGTH_BYTE;
    } else if (corruption.where === "payload" && length >= MIN_TENSOR_FRAME) {
      this.#untilVictim = 1 + Math.floor(length * (0.3 + 0.4 * this.#random()));
    }
  }
}
