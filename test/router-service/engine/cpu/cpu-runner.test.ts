import { createCpuTestRunner } from "../../../support/cpu-runner-factory.ts";
import { runnerSuite } from "../../../support/runner-suite.ts";

await runnerSuite("the CPU", createCpuTestRunner, ["one_token"]);
