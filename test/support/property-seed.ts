/**
 * Loaded before every test file: properties draw the same cases each time, so that a failure is the change's own.
 * SWITCHYARD_TEST_SEED=random draws new ones; a number draws those that a failure reported.
 */

import fc from "fast-check";

const asked = process.env["SWITCHYARD_TEST_SEED"];
if (asked !== "random") fc.configureGlobal({ seed: Number(asked ?? 20_261_121) });
