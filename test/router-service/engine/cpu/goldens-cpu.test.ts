import { createCpuTestRunner } from "../../../support/cpu-runner-factory.ts";
import { goldenSuite } from "../../../support/golden-suite.ts";
import { FAMILY_GOLDENS, VARIANT_GOLDENS } from "../../../support/goldens.ts";

for (const directory of [...FAMILY_GOLDENS, ...VARIANT_GOLDENS]) {
  await goldenSuite("the CPU", directory, (checkpoint, limits) =>
    createCpuTestRunner(checkpoint, limits),
  );
}

await goldenSuite("the CPU with experts in MXFP4", "test/goldens/gpt_oss", (checkpoint, limits) =>
  createCpuTestRunner(checkpoint, limits, "mxfp4"),
);
