import assert from "node:assert/strict";

/** Names of the create* methods that `run` calls on any GPU device of this process, in order. */
export async function createdDuring(
  device: GPUDevice,
  run: () => Promise<void>,
): Promise<string[]> {
  const prototype = Object.getPrototypeOf(device) as Record<string, unknown>;
  const names = Object.getOwnPropertyNames(prototype).filter((name) => name.startsWith("create"));
  assert.ok(names.includes("createBuffer") && names.includes("createBindGroup"), names.join());
  const created: string[] = [];
  const originals = names.map(
    (name) => [name, Object.getOwnPropertyDescriptor(prototype, name)] as const,
  );
  for (const [name, descriptor] of originals) {
    const original = descriptor?.value as (...args: unknown[]) => unknown;
    Object.defineProperty(prototype, name, {
      ...descriptor,
      value(this: GPUDevice, ...args: unknown[]) {
        created.push(name);
        return original.apply(this, args);
      },
    });
  }
  try {
    await run();
  } finally {
    for (const [name, descriptor] of originals) {
      Object.defineProperty(prototype, name, descriptor as PropertyDescriptor);
    }
  }
  return created;
}
