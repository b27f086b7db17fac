import { SWIFTSHADER } from "../../support/swiftshader.ts";

Object.assign(process.env, SWIFTSHADER);
const { kernelSuite } = await import("../../support/kernel-suite.ts");

await kernelSuite("SwiftShader", /swiftshader/i, "few");
