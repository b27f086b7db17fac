import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import type { Tokenizer } from "../../../core/model/tokenizer/text.ts";
import { loadTokenizer } from "../../../core/model/tokenizer/tokenizer.ts";
import { InvalidRequestError } from "../../../router-service/engine/errors.ts";
import type { SamplingParams } from "../../../router-service/engine/request.ts";
import { createStopMatcher } from "../../../router-service/engine/stop-matcher.ts";
import { generateText, type TextEvent } from "../../../router-service/engine/text-stream.ts";
import { engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { toyContinuation } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const DEMO_MODEL = new URL("../../../models/demo-moe", import.meta.url).pathname;

const tokenizer = (await loadTokenizer(DEMO_MODEL)) as Tokenizer;
const PROMPT = tokenizer.encode("The toy says what nobody has written:");
const NUM_TOKENS = 40;

/** What the toy goes on with: any tokens at all, so there are broken characters and special tokens among them. */
const IDS = toyContinuation(PROMPT, NUM_TOKENS, tokenizer.vocabSize);
const textOf = (ids: readonly number[]) => tokenizer.decode(ids, { skipSpecialTokens: true });

interface Heard {
  text: string;
  readonly tokenIds: number[];
  finish?: Extract<TextEvent, { type: "finish" }>;
  readonly events: TextEvent[];
}

async function hear(events: AsyncIterable<TextEvent>): Promise<Heard> {
  const heard: Heard = { text: "", tokenIds: [], events: [] };
  for await (const event of events) {
    heard.events.push(event);
    if (event.type === "delta") {
      heard.text += event.text;
      heard.tokenIds.push(...event.tokenIds);
    } else if (event.type === "finish") {
      heard.finish = event;
    }
  }
  return heard;
}

/** An engine for one tokenizer's ids, and a way to generate with it. */
function generator(eosTokenIds: readonly number[] = []) {
  const { engine } = toyEngine({ numBlocks: 16, vocabSize: tokenizer.vocabSize }, { eosTokenIds });
  const generate = (sampling: Partial<SamplingParams>, withTokenizer = true) =>
    generateText({
      engine,
      ...(withTokenizer && { tokenizer }),
      request: engineRequest(PROMPT, { maxTokens: NUM_TOKENS, ...sampling }),
    });
  return { engine, generate };
}

describe("a text stream", () => {
  it("yields the prompt, the text of all tokens in pieces, and a finish with exact counts", async () => {
    const { engine, generate } = generator();
    const { text, tokenIds, finish, events } = await hear(generate({ logprobs: 2 }));
    assert.equal(text, textOf(IDS));
    assert.deepEqual(tokenIds, IDS);
    assert.deepEqual(finish, { type: "finish", reason: "length", completionTokens: NUM_TOKENS });
    assert.deepEqual(events[0], { type: "prompt", cachedTokens: 0 });
    for (const event of events) {
      if (event.type !== "delta") continue;
      assert.deepEqual(
        event.logprobs?.map(({ token, top }) => [token.tokenId, top.length]),
        event.tokenIds.map((id) => [id, 2]),
      );
    }
    await engine.close();
  });

  it("goes on with the prompt's text: a space between the two is text", async () => {
    const { engine } = toyEngine({ numBlocks: 16, vocabSize: tokenizer.vocabSize });
    const beginsWithSpace = (id: number) => tokenizer.tokenBytes(id)[0] === 0x20;
    const prompt = tokenizer.encode("one two three four five six seven eight").find((last) => {
      return beginsWithSpace(toyContinuation([...PROMPT, last], 1, tokenizer.vocabSize)[0]);
    });
    const request = engineRequest([...PROMPT, prompt!], { maxTokens: 1 });
    const stripping = { ...tokenizer, stripsFirstSpace: true };
    const { text, tokenIds } = await hear(generateText({ engine, tokenizer: stripping, request }));
    assert.equal(text, tokenizer.decode(tokenIds));
    assert.ok(text.startsWith(" "), text);
    await engine.close();
  });

  it("ends before a stop string wherever it lies in the tokens, with the tokens that it took", async () => {
    const { engine, generate } = generator();
    const whole = textOf(IDS);
    let numCrossing = 0;
    for (let start = 0; start + 4 < whole.length; start++) {
      const stop = whole.slice(start, start + 4);
      if (stop.includes("\ufffd")) continue; // how much of a broken character is text depends on what follows
      const completionTokens =
        IDS.findIndex((_, i) => textOf(IDS.slice(0, i + 1)).includes(stop)) + 1;
      const { text, tokenIds, finish } = await hear(generate({ stop: ["never", stop] }));
      assert.equal(text, whole.slice(0, whole.indexOf(stop)));
      assert.deepEqual(tokenIds, IDS.slice(0, completionTokens));
      assert.deepEqual(finish, {
        type: "finish",
        reason: "stop",
        stopReason: stop,
        completionTokens,
      });
      if (!tokenizer.decode([IDS[completionTokens - 1]]).includes(stop)) numCrossing++;
    }
    assert.ok(numCrossing >= 5, `${numCrossing} stop strings cross a token border`);
    await waitFor("the engine to be empty", () => engine.state().freeBlocks === 16);
    await engine.close();
  });

  it("takes no stop string within the first min_tokens tokens", async () => {
    const { engine, generate } = generator();
    const first = IDS.findIndex((id) => /^[ a-z]{3,}$/.test(tokenizer.decode([id])));
    const stop = tokenizer.decode([IDS[first]]);
    assert.equal(textOf(IDS).split(stop).length, 2, "it occurs once");
    const stopped = await hear(generate({ stop: [stop], minTokens: first }));
    assert.equal(stopped.finish?.completionTokens, first + 1);
    const passed = await hear(generate({ stop: [stop], minTokens: first + 1 }));
    assert.equal(passed.text, textOf(IDS));
    assert.equal(passed.finish?.reason, "length");
    await engine.close();
  });

  it("names the stop id that ended it, but not an end-of-sequence id, and counts both", async () => {
    const end = IDS[5];
    const withEos = generator([end]);
    const eos = await hear(withEos.generate({}));
    const ended = { type: "finish", reason: "stop", stopTokenId: end, completionTokens: 6 };
    assert.deepEqual(eos.finish, ended);
    assert.equal(eos.text, textOf(IDS.slice(0, 5)));
    await withEos.engine.close();
    const { engine, generate } = generator();
    const stopped = await hear(generate({ stopTokenIds: [end] }));
    assert.deepEqual(stopped.finish, { ...ended, stopReason: end });
    await engine.close();
  });

  it("lets only ids flow without a tokenizer, and refuses stop strings then", async () => {
    const { engine, generate } = generator();
    const { text, tokenIds } = await hear(generate({}, false));
    assert.deepEqual([text, tokenIds], ["", IDS]);
    await assert.rejects(
      hear(generate({ stop: ["x"] }, false)),
      (error: Error) => error instanceof InvalidRequestError && error.param === "stop",
    );
    await engine.close();
  });

  it("frees the engine when its reader leaves", async () => {
    const { engine, generate } = generator();
    for await (const event of generate({})) if (event.type === "delta") break;
    await waitFor("the engine to be empty", () => {
      const { running, waiting, freeBlocks } = engine.state();
      return running + waiting === 0 && freeBlocks === 16;
    });
    await engine.close();
  });
});

describe("the stop matcher", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 30 });
  const stopsOf = fc.array(
    fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 5 }),
    { maxLength: 3 },
  );

  it("finds in any pieces what it finds letter by letter: the stop string that ends first", () => {
    const cutsOf = fc.array(fc.nat(29), { maxLength: 8 });
    fc.assert(
      fc.property(letters, stopsOf, cutsOf, fc.nat(30), (text, stops, cuts, ignored) => {
        // `ignored` letters may not stop; pieces end there too.
        const ends = [...new Set([...cuts, ignored, text.length])].filter(
          (end) => end <= text.length,
        );
        const matcher = createStopMatcher(stops);
        let heard = "";
        let match: string | undefined;
        let start = 0;
        for (const end of ends.sort((a, b) => a - b)) {
          const found = matcher.push(text.slice(start, end), start >= ignored);
          heard += found.text;
          match = found.match;
          start = end;
          if (match !== undefined) break;
        }
        if (match === undefined) heard += matcher.flush("");

        let expected = { text, match: undefined as string | undefined };
        for (let end = ignored + 1; end <= text.length; end++) {
          const matches = stops.filter((stop) => text.slice(0, end).endsWith(stop));
          if (matches.length === 0) continue;
          const [longest] = matches.sort((a, b) => b.length - a.length);
          expected = { text: text.slice(0, end - longest.length), match: longest };
          break;
        }
        assert.deepEqual({ text: heard, match }, expected);
      }),
      { numRuns: 2000 },
    );
  });

  it("holds back no more than could begin a stop string", () => {
    const matcher = createStopMatcher(["stop!", "top"]);
    assert.deepEqual(matcher.push("a st", true), { text: "a " });
    assert.deepEqual(matcher.push("ar s", true), { text: "star " });
    assert.deepEqual(matcher.push("to", true), { text: "" });
    assert.deepEqual(matcher.push("p", true), { text: "s", match: "top" });
  });
});
