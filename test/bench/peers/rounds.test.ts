import assert from "node:assert/strict";
import { test } from "node:test";

import { startChildContender } from "../../../bench/peers/child-contender.ts";
import type { Contender, Entrant } from "../../../bench/peers/contender.ts";
import { loadsOf } from "../../../bench/peers/loads.ts";
import { runRounds, type RoundsOptions } from "../../../bench/peers/rounds.ts";

const TURNS: string[] = [];

/** A contender that counts upwards from a prompt's last id, at so many milliseconds per token. */
function counting(name: string, msPerToken: number, options: Partial<Entrant> = {}): Entrant {
  const contender: Contender = {
    device: "none",
    details: "counts",
    generate(prompts, numTokens) {
      TURNS.push(name);
      const tokenIds = prompts.map((prompt) =>
        Array.from({ length: numTokens }, (_, i) => prompt[prompt.length - 1] + 1 + i),
      );
      const decodedTokens = prompts.length * (numTokens - 1);
      const prefillMs = prompts.length * msPerToken;
      return Promise.resolve({
        tokenIds,
        prefillMs,
        decodedTokens,
        decodeMs: decodedTokens * msPerToken,
      });
    },
    close: () => {
      TURNS.push(`${name} closed`);
      return Promise.resolve();
    },
  };
  return { name, repeats: 1, open: () => Promise.resolve(contender), ...options };
}

function rounds(entrants: readonly Entrant[], options: Partial<RoundsOptions> = {}) {
  TURNS.length = 0;
  return runRounds({
    entrants,
    loads: loadsOf({ promptLen: 4, outputLen: 3, streams: 1, prefills: [] }),
    rounds: 2,
    goldens: [{ name: "count", prompt: [5], greedy: [6, 7] }],
    prompts: ({ streams }, round) => Array.from({ length: streams }, () => [round]),
    oneAtATime: false,
    onTurn: () => {},
    ...options,
  });
}

test("contenders take turns within a round, after goldens and a warm-up of each", async () => {
  const { rates } = await rounds([counting("a", 2), counting("b", 4)]);
  assert.equal(TURNS.join(" "), "a a b b a b a b a closed b closed");
  assert.deepEqual(rates, [
    { contender: "a", load: "decode, 1 stream", perRound: [500, 500] },
    { contender: "b", load: "decode, 1 stream", perRound: [250, 250] },
  ]);
});

test("one at a time, a contender is closed before the next one is opened", async () => {
  await rounds([counting("a", 2), counting("b", 4)], { oneAtATime: true, rounds: 1 });
  assert.equal(TURNS.join(" "), "a a a closed b b b closed a a closed b b closed");
});

test("a peer whose greedy ids are not the golden's is left out with the reason", async () => {
  const goldens = [{ name: "other", prompt: [5], greedy: [6, 9] }];
  const lenient = counting("lenient", 1, { repeats: 0.5 });
  const { rates, outcomes } = await rounds([lenient, counting("b", 4)], { goldens });
  assert.deepEqual([...new Set(rates.map(({ contender }) => contender))], ["lenient"]);
  assert.deepEqual(outcomes[0].agreements, [{ golden: "other", same: 1, of: 2 }]);
  assert.deepEqual(outcomes[0].firstIds, { same: 1, of: 1 });
  assert.match(outcomes[1].problem ?? "", /b: golden other: 1 of 2 greedy ids are right/);
});

test("a peer that can not be opened is named, and the run fails only where the first contender does", async () => {
  const broken: Entrant = {
    name: "broken",
    repeats: 1,
    open: () => Promise.reject(new Error("not installed")),
  };
  const { outcomes } = await rounds([counting("a", 2), broken]);
  assert.equal(outcomes[1].problem, "not installed");
  await assert.rejects(rounds([broken, counting("a", 2)]), /not installed/);
});

const ECHO = `
process.stdout.write("noise of a native library\\n");
process.stdout.write('{"ready":{"device":"d","details":"e"}}\\n');
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const { prompts, numTokens } = JSON.parse(line);
  if (numTokens === 9) { console.error("out of memory"); process.exit(3); }
  const generation = { tokenIds: prompts, prefillMs: 1, decodedTokens: 0, decodeMs: 0 };
  console.log(JSON.stringify(numTokens === 0 ? { error: "no tokens" } : { generation }));
});
`;

test("a contender in a process answers by lines of JSON, and its end is told with what it printed", async () => {
  const child = await startChildContender({
    name: "echo",
    command: process.execPath,
    args: ["-e", ECHO],
    timeoutMs: 10_000,
  });
  assert.equal(child.device, "d");
  assert.deepEqual((await child.generate([[1, 2]], 1)).tokenIds, [[1, 2]]);
  await assert.rejects(child.generate([[1]], 0), /^Error: echo: no tokens$/);
  await assert.rejects(child.generate([[1]], 9), /echo ended: exit code 3\n {2}out of memory/);
  await child.close();
});

test("a contender that does not load in time is given up", async () => {
  const silent = {
    name: "silent",
    command: process.execPath,
    args: ["-e", "setInterval(() => {}, 1000)"],
    timeoutMs: 300,
  };
  await assert.rejects(startChildContender(silent), /silent: no model within 0.3 s/);
});
