/** Kernels: WGSL source and launch geometry as one value, and the pipelines and bind groups made from them once. */

import { errorMessage } from "../error-message.ts";
import { inTime } from "./deadline.ts";
import type { Gpu } from "./device.ts";

/** Source and geometry of one kernel. `Sizes` are the counts that change from step to step. */
export interface Kernel<Sizes> {
  readonly label: string;
  readonly wgsl: string;
  /** Bytes of workgroup memory, where they grow with a model's sizes. */
  readonly workgroupBytes?: number;
  /** Workgroups in x, y and z for the sizes at hand. */
  readonly grid: (sizes: Sizes) => readonly [number, number, number];
}

/** What a binding takes: a whole buffer or a part of it. */
export type Binding =
  | GPUBuffer
  | { readonly buffer: GPUBuffer; readonly offset: number; readonly size: number };

/** A kernel compiled for a device. */
export interface CompiledKernel<Sizes> {
  /** Binds buffers in the order of the kernel's bindings. */
  bind(...bindings: readonly Binding[]): BoundKernel<Sizes>;
}

/** A kernel with its buffers, ready to be encoded any number of times. */
export interface BoundKernel<Sizes> {
  /** Encodes one run; nothing where a size is zero. */
  encode(pass: GPUComputePassEncoder, sizes: Sizes): void;
}

/** A kernel's source is refused by the device. */
export class KernelError extends Error {
  override readonly name = "KernelError";
}

const COMPUTE = 4; // GPUShaderStage.COMPUTE

const BINDING_TYPES: Readonly<Record<string, GPUBufferBindingType>> = {
  uniform: "uniform",
  "storage, read": "read-only-storage",
  "storage, read_write": "storage",
};

/** Types of the bindings that a source declares, by index; also of those that it does not use, which an automatic layout would drop. */
function bindingTypes(wgsl: string): GPUBufferBindingType[] {
  const types: GPUBufferBindingType[] = [];
  for (const [, index, space] of wgsl.matchAll(/@binding\((\d+)\) var<([a-z_, ]+)>/g)) {
    types[Number(index)] = BINDING_TYPES[space];
  }
  return types;
}

/** A source compiled for a device. */
interface Pipeline {
  readonly layout: GPUBindGroupLayout;
  readonly pipeline: GPUComputePipeline;
}

/** Pipelines of each device by source: drivers take seconds over what models of alike sizes share. */
const pipelines = new WeakMap<GPUDevice, Map<string, Promise<Pipeline>>>();

/** The pipeline of a source, compiled at the first call. Rejects with KernelError. */
function pipelineOf(gpu: Gpu, kernel: Kernel<never>): Promise<Pipeline> {
  const known = pipelines.get(gpu.device) ?? new Map<string, Promise<Pipeline>>();
  pipelines.set(gpu.device, known);
  let pipeline = known.get(kernel.wgsl);
  if (pipeline === undefined) {
    pipeline = inTime(`the compilation of ${kernel.label}`, compilePipeline(gpu, kernel));
    known.set(kernel.wgsl, pipeline);
    // The next caller gets a report of its own.
    pipeline.catch(() => known.delete(kernel.wgsl));
  }
  return pipeline;
}

async function compilePipeline({ device }: Gpu, kernel: Kernel<never>): Promise<Pipeline> {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ label: kernel.label, code: kernel.wgsl });
  const info = await module.getCompilationInfo();
  const errors = info.messages.filter((message) => message.type === "error");
  if (errors.length > 0) {
    await device.popErrorScope();
    const lines = kernel.wgsl.split("\n");
    const report = errors.map(
      (e) => `${e.lineNum}:${e.linePos} ${e.message}\n  ${lines[e.lineNum - 1] ?? ""}`,
    );
    throw new KernelError(`kernel ${kernel.label} does not compile:\n${report.join("\n")}`);
  }
  const layout = device.createBindGroupLayout({
    label: kernel.label,
    entries: bindingTypes(kernel.wgsl).map((type, binding) => ({
      binding,
      visibility: COMPUTE,
      buffer: { type },
    })),
  });
  let pipeline: GPUComputePipeline;
  try {
    pipeline = await device.createComputePipelineAsync({
      label: kernel.label,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: "main" },
    });
  } catch (error) {
    await device.popErrorScope();
    throw new KernelError(`kernel ${kernel.label}: ${errorMessage(error)}`, { cause: error });
  }
  const error = await device.popErrorScope();
  if (error !== null) throw new KernelError(`kernel ${kernel.label}: ${error.message}`);
  return { layout, pipeline };
}

/**
 * Compiles a kernel, or takes the pipeline that a kernel of the same source has on the device already.
 * Rejects with KernelError: line, column, message and source line, or the limit that it passes; DeviceTimeoutError.
 */
export async function compileKernel<Sizes>(
  gpu: Gpu,
  kernel: Kernel<Sizes>,
): Promise<CompiledKernel<Sizes>> {
  const { device } = gpu;
  const { maxComputeWorkgroupStorageSize: workgroupLimit } = device.limits;
  if (kernel.workgroupBytes !== undefined && kernel.workgroupBytes > workgroupLimit) {
    throw new KernelError(
      `kernel ${kernel.label} needs ${kernel.workgroupBytes} bytes of workgroup memory, ${gpu.adapter} has ${workgroupLimit}`,
    );
  }
  const { layout, pipeline } = await pipelineOf(gpu, kernel);
  const maxWorkgroups = device.limits.maxComputeWorkgroupsPerDimension;

  return {
    bind(...bindings) {
      const group = device.createBindGroup({
        label: kernel.label,
        layout,
        entries: bindings.map((binding, index) => ({
          binding: index,
          resource: "offset" in binding ? binding : { buffer: binding },
        })),
      });
      return {
        encode(pass, sizes) {
          const [x, y, z] = kernel.grid(sizes);
          if (x * y * z === 0) return;
          if (Math.max(x, y, z) > maxWorkgroups) {
            throw new KernelError(
              `kernel ${kernel.label}: grid ${x} × ${y} × ${z}, the device takes at most ${maxWorkgroups} per dimension`,
            );
          }
          pass.setPipeline(pipeline);
          pass.setBindGroup(0, group);
          pass.dispatchWorkgroups(x, y, z);
        },
      };
    },
  };
}
