import type { Kernel } from "../kernel.ts";

const WORKGROUP = 256;

/** Words of a buffer to fill. */
export interface FillSizes {
  readonly words: number;
}

/** The word that `fill` gives index i, on the host. */
export function fillWord(i: number, mask: number, set: number): number {
  let h = Math.imul(i, 0x9e3779b9);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (((h ^ (h >>> 16)) & mask) | set) >>> 0;
}

/**
 * out[i] = random bits of i, of which those of `mask` are kept and those of `set` are set: weights to measure on.
 *
 * 0 out u32 [words]
 */
export function fill(mask: number, set: number): Kernel<FillSizes> {
  return {
    label: `fill ${mask.toString(16)} ${set.toString(16)}`,
    grid: ({ words }) => {
      const groups = Math.ceil(words / WORKGROUP);
      const x = Math.min(groups, 32768);
      return [x, Math.ceil(groups / x), 1];
    },
    wgsl: /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(${WORKGROUP})
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.y * groups.x + group.x) * ${WORKGROUP}u + thread;
  if (i >= arrayLength(&out)) { return; }
  var h = i * 0x9e3779b9u;
  h = (h ^ (h >> 16u)) * 0x85ebca6bu;
  h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
  out[i] = ((h ^ (h >> 16u)) & ${mask >>> 0}u) | ${set >>> 0}u;
}`,
  };
}
