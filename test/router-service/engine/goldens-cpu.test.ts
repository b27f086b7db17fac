import { createCpuTestRunner } from "../../support/cpu-runner-factory.ts";
import { goldenSuite } from "../../support/golden-suite.ts";
import { FAMILY_GOLDENS, VARIANT_GOLDENS } from "../../support/goldens.ts";

for (const directory of [...FAMILY_GOLDENS, ...VARIANT_GOLDENS]) {
  await goldenSuite("the CPU", directory, createCpuTestRunner);
}
