/** `npm run bench:kernels`: what the matrix kernels reach on this machine's GPU, beside what it can do at best. */

import { z } from "zod";

import { errorMessage } from "../core/error-message.ts";
import { EXPERT_FORMATS } from "../core/expert-format.ts";
import { type Gpu, openGpu } from "../core/gpu/device.ts";
import { type KernelTimer, openTimer } from "../core/gpu/kernel-timing.ts";
import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { type MeasuredRates, measureRates } from "./kernels/device-rates.ts";
import { slotsThatFit, type TimedExperts, timeExperts } from "./kernels/expert-product.ts";
import {
  type DeviceRates,
  floorsOf,
  isExpertKernel,
  type KernelName,
  KERNELS,
  productOf,
  ROW_COUNTS,
  WIDTHS,
  type WidthsName,
  workOf,
} from "./kernels/floors.ts";
import { timePlain } from "./kernels/plain-product.ts";
import { type KernelResult, short, tableHead, tableLine } from "./kernels/table.ts";
import { type VendorProduct, vendorProducts, type VendorReport } from "./kernels/vendor-product.ts";

const widthNames = Object.keys(WIDTHS) as WidthsName[];

const schema = z.object({
  widths: z
    .array(z.enum(widthNames))
    .default(widthNames)
    .meta({
      description: "Models whose widths are measured",
      placeholder: "NAME,NAME",
      expectation: `a list of ${widthNames.join(", ")}`,
    }),
  kernels: z
    .array(z.enum(KERNELS))
    .default([...KERNELS])
    .meta({
      description: "Products that are measured",
      placeholder: "NAME,NAME",
      expectation: `a list of ${KERNELS.join(", ")}`,
    }),
  rows: z
    .array(z.coerce.number().int().min(1).max(4096))
    .default([...ROW_COUNTS])
    .meta({
      description: "Rows of a batch",
      placeholder: "N,N",
      expectation: "a list of whole numbers from 1 to 4096",
    }),
  formats: z
    .array(z.enum(EXPERT_FORMATS as [string, ...string[]]))
    .default(["f16", "int8", "int4-g32"])
    .meta({
      description: "Formats of the experts' weights",
      placeholder: "NAME,NAME",
      expectation: `a list of ${EXPERT_FORMATS.join(", ")}`,
    }),
  perExpert: z.boolean().default(false).meta({
    description:
      "Rows are rows of each expert, over as many experts as a token has, instead of rows of a batch",
  }),
  seconds: z.number().positive().default(0.2).meta({
    description:
      "Time that the runs of one candidate may take; a product that must take longer is skipped",
    unit: "s",
    placeholder: "S",
  }),
  memory: z.number().positive().default(4).meta({
    description: "Weights that one measurement may allocate",
    unit: "GB",
    placeholder: "GB",
  }),
  adapter: serviceOptions.adapter,
  python: z.string().min(1).default("python3").meta({
    description: "Interpreter with torch, by which the vendor's library is measured",
    placeholder: "PATH",
  }),
});

type Settings = Readonly<z.output<typeof schema>>;
type Format = (typeof EXPERT_FORMATS)[number];

/** Weights that take turns are this large together: beyond the caches of any GPU. */
const ROTATE_BYTES = 256 * 2 ** 20;

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

interface Cell {
  readonly widths: WidthsName;
  readonly kernel: KernelName;
  readonly format: Format;
  readonly rows: number;
}

/** What is measured, experts' two halves together. */
function cellsOf(settings: Settings): Cell[] {
  return settings.widths.flatMap((widths) =>
    settings.kernels.flatMap((kernel) =>
      (isExpertKernel(kernel) ? (settings.formats as Format[]) : (["f16"] as const)).flatMap(
        (format) => settings.rows.map((rows) => ({ widths, kernel, format, rows })),
      ),
    ),
  );
}

/** Experts by widths, format and rows: both halves are measured together. */
const timedExperts = new Map<string, Promise<TimedExperts>>();

/** Measures one cell, or says why not. */
async function measureCell(
  gpu: Gpu,
  timer: KernelTimer,
  rates: DeviceRates,
  settings: Settings,
  { widths, kernel, format, rows }: Cell,
): Promise<KernelResult> {
  const of = WIDTHS[widths];
  const held = slotsThatFit(gpu, of, format, settings.memory * 1e9);
  const numSlots = settings.perExpert ? Math.min(of.topK, held) : held;
  const product = productOf(kernel, of, rows, Math.max(1, numSlots));
  const cell = { widths, kernel, format, rows, product };
  const skipped = (reason: string): KernelResult => ({
    ...cell,
    outcome: { kind: "skipped", reason },
  });
  if (isExpertKernel(kernel) && numSlots === 0) return skipped("one expert exceeds a binding");
  const { memoryS, computeS } = floorsOf(workOf(product, format), rates);
  const least = Math.max(memoryS, computeS);
  if (least > settings.seconds) return skipped(`takes ${short(least)} s at least`);
  try {
    const { seconds } = settings;
    const key = `${widths} ${format} ${rows}`;
    if (isExpertKernel(kernel) && !timedExperts.has(key)) {
      timedExperts.set(key, timeExperts(gpu, timer, of, format, rows, { seconds, numSlots }));
    }
    const experts = await timedExperts.get(key);
    const timed =
      experts && isExpertKernel(kernel)
        ? experts[kernel === "gate-up" ? "gateUp" : "down"]
        : await timePlain(gpu, timer, product, rows, {
            seconds,
            rotateBytes: gpu.offers.software ? 0 : ROTATE_BYTES,
          });
    return { ...cell, outcome: { kind: "timed", ...timed } };
  } catch (error) {
    return skipped(errorMessage(error));
  }
}

/** The vendor library's products at the sizes of one expert; a program on the CPU has no vendor. */
async function measureVendor(gpu: Gpu, settings: Settings): Promise<VendorReport> {
  if (gpu.offers.software) return { kind: "absent", reason: "the adapter is a program on the CPU" };
  const sizes = settings.widths.flatMap((name) =>
    settings.rows.flatMap((rows) => {
      const { hiddenSize: h, expertIntermediateSize: i } = WIDTHS[name];
      return [[rows, 2 * i, h] as const, [rows, h, i] as const];
    }),
  );
  return vendorProducts(settings.python, [[8192, 8192, 8192], [4096, 4096, 4096], ...sizes]);
}

/** Rates with the vendor's product where that is better than ours: what a fraction of it is worth. */
function withVendor(ours: MeasuredRates, report: VendorReport): MeasuredRates {
  if (report.kind === "absent") return ours;
  const rateOf = ({ m, n, k, seconds }: VendorProduct) => (2 * m * n * k) / seconds;
  const [best] = report.products.toSorted((a, b) => rateOf(b) - rateOf(a));
  if (best === undefined || rateOf(best) <= ours.operationsPerSecond) return ours;
  const product = `vendor library, f16 ${best.m}×${best.n}×${best.k}`;
  return { ...ours, operationsPerSecond: rateOf(best), product };
}

/** The vendor's products as lines. */
function vendorLines(report: VendorReport): string[] {
  if (report.kind === "absent") return [`Vendor library: not measured (${report.reason}).`];
  return [
    `Vendor library (torch, f16) on ${report.device}: copy ${short(report.copyBytesPerSecond / 1e9)} GB/s`,
    "",
    "| m | n | k | ms | GB/s of weights | GFLOP/s |",
    "| --- | --- | --- | --- | --- | --- |",
    ...report.products.map(
      ({ m, n, k, seconds }) =>
        `| ${m} | ${n} | ${k} | ${short(seconds * 1e3)} | ${short((2 * n * k) / seconds / 1e9)} | ${short((2 * m * n * k) / seconds / 1e9)} |`,
    ),
  ];
}

const settings = loadConfig(schema, {
  command: "npm run bench:kernels --",
  summary:
    "Times every matrix kernel at the widths of published models and prints how near it comes to the device's own rates.",
  notes: "Progress goes to stderr, the Markdown to stdout.",
});
const gpu = await openGpu(settings.adapter).catch((error: unknown) => {
  say(errorMessage(error));
  process.exit(1);
});
void gpu.lost.then((reason) => {
  say(reason);
  process.exit(1);
});
const timer = openTimer(gpu);
say(`measuring ${gpu.adapter}`);
const vendor = await measureVendor(gpu, settings);
const rates = withVendor(await measureRates(gpu, timer, settings.seconds), vendor);
console.log(`${gpu.adapter} (${gpu.driver})\n`);
console.log(
  `copy ${short(rates.bytesPerSecond / 1e9)} GB/s; best plain product ${short(rates.operationsPerSecond / 1e9)} GFLOP/s (${rates.product})\n`,
);
console.log(tableHead());
const cells = cellsOf(settings);
for (const [i, cell] of cells.entries()) {
  say(
    `${i + 1} of ${cells.length}: ${cell.widths} ${cell.kernel} ${cell.format}, ${cell.rows} rows`,
  );
  console.log(tableLine(await measureCell(gpu, timer, rates, settings, cell), rates));
}
console.log(`\n${vendorLines(vendor).join("\n")}`);
timer.close();
gpu.close();
