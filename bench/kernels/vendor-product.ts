/** The vendor library's own product on the same GPU: cuBLAS through torch, where both are there. */

import { execFile } from "node:child_process";
import { promisify } from "node:util";

const SCRIPT = `
import json, sys, torch
if not torch.cuda.is_available():
    sys.exit("torch finds no CUDA device")
out = {"device": torch.cuda.get_device_name(0), "products": []}
for m, n, k in json.loads(sys.argv[1]):
    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    ws = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(max(1, min(16, 2**28 // (2 * n * k))))]
    for w in ws: a @ w.T
    torch.cuda.synchronize()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for w in ws: a @ w.T
        end.record(); torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(ws))
    out["products"].append({"m": m, "n": n, "k": k, "seconds": sorted(times)[len(times) // 2]})
x = torch.empty(2**28, device="cuda", dtype=torch.float32); y = torch.empty_like(x)
times = []
for _ in range(15):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record(); y.copy_(x); end.record(); torch.cuda.synchronize()
    times.append(begin.elapsed_time(end) / 1e3)
out["copyBytesPerSecond"] = 2 * 4 * 2**28 / sorted(times)[len(times) // 2]
print(json.dumps(out))
`;

/** One product [m, k] · [n, k]ᵀ in f16. */
export interface VendorProduct {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly seconds: number;
}

/** What the vendor's library does, or why it was not asked. */
export type VendorReport =
  | {
      readonly kind: "measured";
      readonly device: string;
      readonly copyBytesPerSecond: number;
      readonly products: readonly VendorProduct[];
    }
  | { readonly kind: "absent"; readonly reason: string };

/** Torch's first use of a GPU can take a minute, milliseconds. */
const TIMEOUT_MS = 180_000;

/** Measures products of these sizes by `python -c`. Never rejects: a missing part is the report. */
export async function vendorProducts(
  python: string,
  sizes: readonly (readonly [m: number, n: number, k: number])[],
): Promise<VendorReport> {
  try {
    const { stdout } = await promisify(execFile)(python, ["-c", SCRIPT, JSON.stringify(sizes)], {
      timeout: TIMEOUT_MS,
    });
    const report = JSON.parse(stdout) as Omit<Extract<VendorReport, { kind: "measured" }>, "kind">;
    return { kind: "measured", ...report };
  } catch (error) {
    const text = String((error as { stderr?: string }).stderr || error);
    return { kind: "absent", reason: text.trim().split("\n").at(-1) ?? "no answer" };
  }
}
