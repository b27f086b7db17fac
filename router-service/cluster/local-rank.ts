/** The router's own device as a member of its cluster: a shard without a wire. */

import { setTimeout as pause } from "node:timers/promises";

import { type ExpertDevice, NO_SLOT, runInParts } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import type { ExpertSizes, StoredExpert } from "../../core/expert-device.ts";
import { formatFromWire } from "../../core/format-message.ts";
import { loadExperts } from "../../core/load-experts.ts";
import { LOCAL_RANK } from "../../core/placement/placement.ts";
import type { Logger } from "../../core/platform/log.ts";
import { DeviceSlots, type PlacedExperts } from "../../core/residency/device-slots.ts";
import { expertBytes } from "../../core/weights.ts";
import { unpackRows } from "../../core/wire-rows.ts";
import {
  type DispatchHeader,
  NO_EXPERT,
  type PackedDispatch,
  PROTOCOL_VERSION,
} from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import { DispatchErrorCode, ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../engine/errors.ts";
import type { ClusterMember, MemberEvent, MemberView } from "./cluster-member.ts";
import { DispatchFailedError, PlacementRefusedError } from "./errors.ts";
import { type MeasuredSpeed, ShardSpeed } from "./shards/shard-speed.ts";
import type { SpeedSample } from "./shards/steady-speed.ts";
import type { DispatchAnswer, DispatchHandle } from "./shards/shard-stream.ts";

const NAME = "the router's own device";

/** Longest pause of a load beside runs, milliseconds. */
const LONGEST_PAUSE_MS = 1_000;

/** What the router gives to routed experts. */
export interface LocalRankOptions {
  /** Description of what computes. */
  readonly adapter: string;
  readonly shaderF16: boolean;
  /** What experts may take now, bytes. */
  readonly memoryBytes: () => number;
  readonly sizes: ExpertSizes & { readonly numExperts: number };
  /** Makes the device for experts in these formats. */
  readonly createDevice: (formats: readonly ExpertFormat[]) => Promise<ExpertDevice>;
  /** Every format that experts may be in, where `common` is that of those that the overlay says nothing of. */
  readonly formats: (common: ExpertFormat) => readonly ExpertFormat[];
  readonly readExpert: (layer: number, expert: number) => Promise<StoredExpert>;
  readonly logger: Logger;
}

type Epoch = PlacedExperts & { readonly epoch: number };

/** Holds experts on the router's own device. */
export class LocalRank implements ClusterMember {
  readonly address = "local";
  readonly rank = LOCAL_RANK;
  readonly connected = true;
  readonly draining = false;
  readonly trusted = true;
  readonly #options: LocalRankOptions;
  readonly #onEvent: (member: ClusterMember, event: MemberEvent) => void;
  readonly #epochs = new Map<number, Epoch>();
  readonly #speed = new ShardSpeed();
  #slots: DeviceSlots | undefined;
  /** Runs, and changes between them, one after another. */
  #tail: Promise<unknown> = Promise.resolve();
  /** Placements, one after another. */
  #placing: Promise<unknown> = Promise.resolve();
  #reason = "it holds no placement yet";
  /** When the last run ended, milliseconds of performance.now(); Infinity while one is on the device. */
  #lastRunAt = Number.NEGATIVE_INFINITY;
  /** Ends what is being loaded. */
  readonly #stop = new AbortController();

  constructor(
    options: LocalRankOptions,
    onEvent: (member: ClusterMember, event: MemberEvent) => void,
  ) {
    this.#options = options;
    this.#onEvent = onEvent;
  }

  get hello(): ShardHello {
    const { adapter, shaderF16, memoryBytes } = this.#options;
    return ShardHello.fromPartial({
      protocolVersion: PROTOCOL_VERSION,
      rank: LOCAL_RANK,
      weights: "auto",
      experts: "auto",
      adapter,
      shaderF16,
      memoryBytes: memoryBytes(),
    });
  }

  holds(epoch: number): boolean {
    return this.#epochs.has(epoch);
  }

  serves(epoch: number): boolean {
    return this.#epochs.has(epoch);
  }

  reasonAgainst(): string {
    return this.#reason;
  }

  get speed(): MeasuredSpeed {
    return { ...this.#speed.measured, roundTripSeconds: 0, bytesPerSecond: Infinity };
  }

  place(placement: ShardPlacement): Promise<void> {
    const placed = this.#placing.then(() => this.#place(placement));
    this.#placing = placed.catch(() => {});
    return placed;
  }

  placeAgain(placement: ShardPlacement): void {
    this.#epochs.delete(placement.epoch);
    this.place(placement).catch(() => {});
  }

  release(oldestLiveEpoch: number): void {
    this.#forget((epoch) => epoch < oldestLiveEpoch);
  }

  abandon(epoch: number): void {
    this.#forget((one) => one === epoch);
  }

  dispatch(header: Omit<DispatchHeader, "dispatchId">, payload: PackedDispatch): DispatchHandle {
    const { promise, resolve, reject } = Promise.withResolvers<DispatchAnswer>();
    this.#inTurn(() => this.#run(header, payload)).then(resolve, reject);
    return { answer: promise, bytesOut: 0, cancel: reject };
  }

  expectedSeconds(bytes: number, pairs: number): number | undefined {
    return this.#speed.expectedSeconds(bytes, pairs);
  }

  observe(sample: SpeedSample): void {
    this.#speed.observe({ ...sample, bytes: 0 }, performance.now() / 1000);
  }

  // There is nobody to fall silent, to leave, or to lie: where this device fails, so does the router.
  overdue(): void {}
  failed(): void {}
  forgive(): void {}
  drain(): boolean {
    return false;
  }

  view(epoch: number | undefined): MemberView {
    const loading = epoch !== undefined && !this.#epochs.has(epoch);
    const { steady } = this.#speed;
    // It is measured only where it has experts: until then it must not count as far away as shards are.
    const roundTripSeconds = steady.roundTripSeconds ?? 0;
    return {
      address: this.address,
      rank: LOCAL_RANK,
      state: loading ? "loading" : "ready",
      reason: loading ? this.#reason : undefined,
      hello: this.hello,
      status: undefined,
      epochs: [...this.#epochs.keys()].sort((a, b) => a - b),
      speed: this.speed,
      steady: { ...steady, roundTripSeconds, bytesPerSecond: Infinity },
      suspect: false,
      quarantinedUntil: undefined,
    };
  }

  /** Ends what is being loaded, waits for runs that have begun, and frees the device; nothing is placed from then on. */
  async close(): Promise<void> {
    this.#stop.abort(new UnavailableError("the router is stopping"));
    await this.#placing;
    await this.#inTurn(async () => {
      this.#slots?.device.close();
      this.#slots = undefined;
    });
  }

  #inTurn<T>(task: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(task);
    this.#tail = done.catch(() => {});
    return done;
  }

  async #place(message: ShardPlacement): Promise<void> {
    if (this.#epochs.has(message.epoch)) return;
    const placed = readPlacement(message);
    this.#reason = "its placement is being loaded";
    try {
      await this.#load([...this.#epochs.values(), placed.experts], placed.common);
    } catch (error) {
      this.#reason = String(error);
      if (this.#stop.signal.aborted) throw error;
      this.#options.logger.error({ epoch: message.epoch, reason: this.#reason }, "local experts");
      throw error;
    }
    this.#epochs.set(message.epoch, placed.experts);
    const residentBytes = this.#slots?.device.residentBytes() ?? 0;
    this.#options.logger.info({ epoch: message.epoch, residentBytes }, "local experts resident");
    this.#onEvent(this, "placed");
  }

  async #load(epochs: readonly Epoch[], common: ExpertFormat): Promise<void> {
    const { sizes, readExpert } = this.#options;
    const { signal } = this.#stop;
    signal.throwIfAborted();
    const memoryBytes = this.#options.memoryBytes();
    const wanted = new Map<number, { readonly expert: number; readonly format: ExpertFormat }[]>();
    let bytes = 0;
    for (const { layers, formatOf } of epochs) {
      for (const [layer, experts] of layers) {
        const of = wanted.get(layer) ?? [];
        wanted.set(layer, of);
        for (const expert of experts) {
          if (of.some((one) => one.expert === expert)) continue;
          const format = formatOf(layer, expert);
          of.push({ expert, format });
          bytes += expertBytes(sizes, format);
        }
      }
    }
    if (bytes > memoryBytes) {
      const reason = `it needs ${bytes} bytes of device memory, at most ${memoryBytes} can be had`;
      throw new PlacementRefusedError(NAME, epochs.at(-1)?.epoch ?? 0, reason);
    }
    if (wanted.size === 0 && this.#slots === undefined) return;
    const slots = (this.#slots ??= new DeviceSlots({
      device: await this.#options.createDevice(this.#options.formats(common)),
      numExperts: sizes.numExperts,
      between: (task) => this.#inTurn(async () => task()),
      gentle: () => this.#isServing(),
    }));
    await slots.arrange(wanted, signal);
    const { device } = slots;
    await loadExperts(slots.empty(), {
      sizes,
      read: (layer, expert) => readExpert(layer, expert),
      device,
      onExpert: (load) => slots.filled(load),
      signal,
      beside: {
        gentle: () => this.#isServing(),
        turn: () => this.#inTurn(async () => {}),
        device,
        giveWay: (startedAt, workMs) => this.#giveWay(startedAt, workMs),
      },
    });
  }

  /** Whether anything may run while experts are loaded. */
  #isServing(): boolean {
    return this.#epochs.size > 0;
  }

  /** Where there were runs since `startedAt`, waits as long again as work beside them took: they may need the cores too. */
  async #giveWay(startedAt: number, workMs: number): Promise<void> {
    if (this.#lastRunAt < startedAt) return;
    const { signal } = this.#stop;
    await pause(Math.min(LONGEST_PAUSE_MS, workMs), undefined, { signal });
  }

  #forget(which: (epoch: number) => boolean): void {
    for (const epoch of this.#epochs.keys()) if (which(epoch)) this.#epochs.delete(epoch);
    this.#placing = this.#placing.then(() => this.#tidy()).catch(() => {});
  }

  /** Frees what no epoch names. */
  async #tidy(): Promise<void> {
    const epochs = [...this.#epochs.values()];
    // The device is made already, whatever the common format is.
    if (this.#slots !== undefined && epochs.length > 0) await this.#load(epochs, "f32");
  }

  async #run(
    { epoch, layer, hiddenSize }: Omit<DispatchHeader, "dispatchId">,
    { rows, expertIds, topkWeights }: PackedDispatch,
  ): Promise<DispatchAnswer> {
    const placed = this.#epochs.get(epoch);
    const found = placed && this.#slots?.find(placed, layer);
    if (this.#slots === undefined || found === undefined) {
      const code = DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH;
      throw new DispatchFailedError(NAME, layer, code, `it has no epoch ${epoch}`);
    }
    const slots = Uint32Array.from(expertIds, (id) => (id === NO_EXPERT ? NO_SLOT : found[id]));
    const startedAt = performance.now();
    const values = unpackRows(rows, hiddenSize);
    const { device } = this.#slots;
    this.#lastRunAt = Number.POSITIVE_INFINITY;
    const running = runInParts(device, layer, hiddenSize, values, slots, topkWeights);
    const sums = await running.finally(() => (this.#lastRunAt = performance.now()));
    const computeUs = Math.round((performance.now() - startedAt) * 1000);
    return { sums, bytesIn: 0, times: { queueUs: 0, computeUs } };
  }
}

function readPlacement({ epoch, layers, expertFormat }: ShardPlacement): {
  readonly experts: Epoch;
  readonly common: ExpertFormat;
} {
  const common = formatFromWire(expertFormat) ?? "f32";
  const formats = new Map(
    layers.map(({ layer, experts }) => [
      layer,
      new Map(experts.map(({ expertId, format }) => [expertId, formatFromWire(format) ?? common])),
    ]),
  );
  return {
    common,
    experts: {
      epoch,
      layers: new Map([...formats].map(([layer, of]) => [layer, [...of.keys()]])),
      formatOf: (layer, expert) => formats.get(layer)?.get(expert) ?? common,
    },
  };
}
