import { kernelSuite } from "../../support/kernel-suite.ts";

await kernelSuite("llvmpipe", /llvmpipe/i, "all");
