/** The one door to WebGPU: opens adapters and devices, allocates buffers, reports what goes wrong. */

import { create, globals } from "webgpu";

import { defaultForeignEnvironment } from "../platform/config.ts";
import { DeviceTimeoutError, inTime } from "./deadline.ts";
import { pacePolling } from "./polling.ts";

import { OutOfDeviceMemoryError } from "../expert-device.ts";

Object.assign(globalThis, globals);

/** Every WebGPU instance of the process; an instance that is collected takes the process down with it. */
export const instances: GPU[] = [];

/** An open device and what is known of its adapter. */
export interface Gpu {
  readonly device: GPUDevice;
  /** Description of the adapter as logs and handshakes show it. */
  readonly adapter: string;
  /** The adapter offers shader-f16. */
  readonly shaderF16: boolean;
  /** Vendor, architecture and driver of the adapter: what a measured choice of kernels holds for. */
  readonly driver: string;
  /** What the adapter offers beyond WebGPU's core; all of it is switched on. */
  readonly offers: AdapterOffers;
  /** Bytes of the largest matrix that lies in one buffer; larger ones are sliced. At most what a binding of the device takes. */
  readonly maxBindingBytes: number;
  /** Settles with the reason when the device is lost, fails or runs out of memory; never otherwise. */
  readonly lost: Promise<string>;
  /** Makes the device count as lost; for errors that leave its state unknown. */
  readonly fail: (reason: string) => void;
  close(): void;
}

/** Optional features that kernels make use of. */
export interface AdapterOffers {
  readonly shaderF16: boolean;
  readonly subgroups: boolean;
  readonly timestamps: boolean;
  /** The adapter is a program on the CPU. */
  readonly software: boolean;
  /** Shapes and types of the matrices that a subgroup multiplies at once; empty where it does not. */
  readonly subgroupMatrix: readonly SubgroupMatrixConfig[];
  /** Smallest and largest subgroup that the adapter may run a kernel with; 1 without subgroups. */
  readonly minSubgroupSize: number;
  readonly maxSubgroupSize: number;
}

/** One shape that subgroup matrices come in: C [M, N] += A [M, K] · B [K, N]. */
export interface SubgroupMatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** No adapter can be had. */
export class NoAdapterError extends Error {
  override readonly name = "NoAdapterError";
}

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
] as const;

/** How long a driver may take to answer, milliseconds. */
const OPEN_TIMEOUT_MS = 60_000;

/** Rejects with NoAdapterError where a driver does not answer in time. */
async function opened<T>(what: string, answer: Promise<T>): Promise<T> {
  try {
    return await inTime(what, answer, OPEN_TIMEOUT_MS);
  } catch (error) {
    throw error instanceof DeviceTimeoutError ? new NoAdapterError(error.message) : error;
  }
}

const SUBGROUP_MATRIX = "chromium-experimental-subgroup-matrix";

/** Features that are switched on where the adapter offers them. */
const FEATURES = ["shader-f16", "subgroups", "timestamp-query", SUBGROUP_MATRIX] as const;

/** What is read of an adapter's info beyond the standard. */
interface DawnAdapterInfo extends GPUAdapterInfo {
  readonly subgroupMatrixConfigs?: Iterable<SubgroupMatrixConfig>;
}

/** What an adapter offers of the features that kernels make use of. */
function offersOf(adapter: GPUAdapter): AdapterOffers {
  const has = (name: string) => adapter.features.has(name);
  const info: DawnAdapterInfo = adapter.info;
  return {
    shaderF16: has("shader-f16"),
    subgroups: has("subgroups"),
    timestamps: has("timestamp-query"),
    software: adapter.info.isFallbackAdapter,
    subgroupMatrix: has(SUBGROUP_MATRIX) ? [...(info.subgroupMatrixConfigs ?? [])] : [],
    minSubgroupSize: has("subgroups") ? (info.subgroupMinSize ?? 1) : 1,
    maxSubgroupSize: has("subgroups") ? (info.subgroupMaxSize ?? 1) : 1,
  };
}

/** The adapter that an instance finds. Throws NoAdapterError where there is none, or none of this name: then with the names there are. */
async function findAdapter(instance: GPU, wanted: string | undefined): Promise<GPUAdapter> {
  const named = wanted === undefined ? "" : ` named like "${wanted}" (--adapter)`;
  try {
    const request = instance.requestAdapter({ powerPreference: "high-performance" });
    const adapter = await opened("requestAdapter", request);
    if (adapter !== null) return adapter;
  } catch (error) {
    // Dawn throws where others answer null, and lists what there is.
    const listed = [...(error as Error).message.matchAll(/ name: '(.*)'/g)].map(([, name]) => name);
    if (listed.length === 0) throw error;
    throw new NoAdapterError(`WebGPU finds no adapter${named}; there are: ${listed.join(", ")}`);
  }
  throw new NoAdapterError(`WebGPU finds no adapter${named}; is a Vulkan driver installed?`);
}

/**
 * Opens a device with the adapter's own limits and optional features.
 * @param adapterName part of the wanted adapter's name; absent: the adapter that the driver prefers
 * @param backend "null" is Dawn's own adapter that offers every feature, validates kernels and runs nothing
 * Throws NoAdapterError where there is none, or its driver does not answer.
 */
export async function openGpu(adapterName?: string, backend?: "null"): Promise<Gpu> {
  pacePolling();
  // llvmpipe loads for one lane after the other: four lanes at once compile in half the time of eight and decode faster.
  defaultForeignEnvironment("LP_NATIVE_VECTOR_WIDTH", "128");
  const instance = create([
    // Subgroup matrices are an experiment of Dawn's, which it offers only so.
    "enable-dawn-features=allow_unsafe_apis",
    ...(adapterName === undefined ? [] : [`adapter=${adapterName}`]),
    ...(backend === undefined ? [] : [`backend=${backend}`]),
  ]);
  instances.push(instance);
  const adapter = await findAdapter(instance, adapterName);
  const offers = offersOf(adapter);
  const device = await opened(
    "requestDevice",
    adapter.requestDevice({
      requiredFeatures: FEATURES.filter((name) => adapter.features.has(name)) as GPUFeatureName[],
      requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
    }),
  );

  const lost = Promise.withResolvers<string>();
  let closed = false;
  void (async () => {
    const info = await device.lost;
    if (!closed) lost.resolve(`GPU device lost (${info.reason}): ${info.message}`);
  })();
  device.addEventListener("uncapturederror", (event) => {
    lost.resolve(`GPU error: ${event.error.message}`);
  });
  return {
    device,
    adapter: adapter.info.description || `${adapter.info.vendor} ${adapter.info.architecture}`,
    shaderF16: offers.shaderF16,
    driver: [adapter.info.vendor, adapter.info.architecture, adapter.info.device].join(" "),
    offers,
    maxBindingBytes: Math.min(
      device.limits.maxBufferSize,
      device.limits.maxStorageBufferBindingSize,
    ),
    lost: lost.promise,
    fail: lost.resolve,
    close() {
      closed = true;
      device.destroy();
    },
  };
}

/** Storage that kernels read and write, and that can be copied from and to. */
export const STORAGE = 0x80 | 0x04 | 0x08;

/** Uniforms that the host writes. */
export const UNIFORM = 0x40 | 0x08;

/** Host-readable copies of results. */
export const READ_BACK = 0x01 | 0x08;

/**
 * Allocates a zeroed buffer of at least `size` bytes.
 * Throws OutOfDeviceMemoryError where a limit of the device is passed; where the driver has no memory left the device counts as lost, with the same message.
 */
export function allocate(gpu: Gpu, label: string, size: number, usage: number): GPUBuffer {
  const { buffer, failure } = tryAllocate(gpu, label, size, usage);
  void (async () => {
    const reason = await failure;
    if (reason !== undefined) gpu.fail(reason);
  })();
  return buffer;
}

/** A buffer whose memory the driver may refuse. */
export interface TriedBuffer {
  readonly buffer: GPUBuffer;
  readonly bytes: number;
  /** Settles with the reason where the driver has no memory for it, else with undefined. */
  readonly failure: Promise<string | undefined>;
}

/** The same for those who can do without: only the result tells that the driver has no memory left. Throws as `allocate`. */
export function tryAllocate(gpu: Gpu, label: string, size: number, usage: number): TriedBuffer {
  const limits = gpu.device.limits;
  const bytes = Math.max(16, Math.ceil(size / 16) * 16);
  const limit =
    usage === STORAGE
      ? Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize)
      : limits.maxBufferSize;
  if (bytes > limit) {
    throw new OutOfDeviceMemoryError(`${label} on ${gpu.adapter}`, bytes, limit);
  }
  gpu.device.pushErrorScope("out-of-memory");
  const buffer = gpu.device.createBuffer({ label, size: bytes, usage });
  const failureOf = async () => {
    const error = await gpu.device.popErrorScope();
    return error === null
      ? undefined
      : `out of device memory: ${label}, ${bytes} bytes on ${gpu.adapter}: ${error.message}`;
  };
  return { buffer, bytes, failure: failureOf() };
}

/** Writes data at a byte offset; by its bytes, as `webgpu` ends the process by SIGFPE over a Float16Array. */
export function write(gpu: Gpu, buffer: GPUBuffer, offset: number, data: ArrayBufferView): void {
  const { buffer: bytes, byteOffset, byteLength } = data;
  gpu.device.queue.writeBuffer(buffer, offset, bytes, byteOffset, byteLength);
}

/** Settles when everything written is in its buffers; until then the host holds copies of it. Rejects with DeviceTimeoutError, and where the device is lost. */
export async function settleWrites(gpu: Gpu): Promise<void> {
  gpu.device.queue.submit([]);
  await inTime("writes", gpu.device.queue.onSubmittedWorkDone());
}

/** Allocates a buffer that holds the data. Throws as `allocate`. */
export function upload(gpu: Gpu, label: string, data: ArrayBufferView): GPUBuffer {
  const buffer = allocate(gpu, label, data.byteLength, STORAGE);
  write(gpu, buffer, 0, data);
  return buffer;
}
