/** POST /v1/completions. */

import { setImmediate } from "node:timers/promises";

import type { AnswerFormat, Plan } from "./answer.ts";
import {
  type Choice,
  type ChoiceResult,
  finishLogprobs,
  finishTokenIds,
  planChoices,
} from "./choices.ts";
import {
  type CompletionLogprobs,
  CompletionLogprobWriter,
  joinLogprobs,
  promptLogprobs,
} from "./logprobs.ts";
import { completionSchema, readPrompts } from "./openai-schemas.ts";
import { encodePrompt, type Prompt } from "./prompts.ts";
import { checkUsageOptions, parseBody } from "./request-body.ts";
import { resolveSampling } from "./sampling.ts";
import { checkModel, type Serving } from "./serving.ts";

/** OpenAI's default for completions. */
const DEFAULT_MAX_TOKENS = 16;

/** Checks a completions body and plans its completions. Throws what names the field at fault. */
export async function planCompletions(serving: Serving, body: unknown, id: string): Promise<Plan> {
  const fields = parseBody(completionSchema, body, serving.log);
  checkModel(serving, fields.model);
  checkUsageOptions(fields);
  const inputs = readPrompts(fields.prompt);
  const prompts: Prompt[] = [];
  for (const [i, input] of inputs.entries()) {
    // Encoding takes its time: between two prompts others have their turn.
    if (i > 0 && input.kind === "text") await setImmediate();
    const field = inputs.length > 1 ? `prompt[${i}]` : "prompt";
    prompts.push(encodePrompt(serving, input, field, fields.add_special_tokens ?? true));
  }
  const echo = fields.echo ?? false;
  const echoLogprobs = echo ? fields.logprobs : undefined;
  const value = fields.max_tokens;
  const samplingOf = (prompt: Prompt) =>
    resolveSampling(fields, {
      generation: serving.generation,
      vocabSize: serving.config.vocabSize,
      maxModelLen: serving.engine.maxModelLen,
      promptTokens: prompt.tokenIds.length,
      maxTokens: value === undefined ? undefined : { field: "max_tokens", value },
      defaultMaxTokens: DEFAULT_MAX_TOKENS,
      logprobs: fields.logprobs,
      promptLogprobs: maxOf(echoLogprobs, fields.prompt_logprobs),
      fieldPrefix: "",
      promptField: prompt.field,
    });
  return {
    choices: planChoices(prompts, fields.n ?? 1, samplingOf),
    format: completionFormat(serving, {
      id,
      echo,
      logprobs: fields.logprobs,
      promptLogprobs: fields.prompt_logprobs,
      tokenIds: fields.return_token_ids ?? false,
    }),
    stream: fields.stream ?? false,
    includeUsage: fields.stream_options?.include_usage ?? false,
  };
}

interface CompletionOptions {
  readonly id: string;
  readonly echo: boolean;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  /** vLLM's return_token_ids. */
  readonly tokenIds: boolean;
}

function completionFormat(serving: Serving, options: CompletionOptions): AnswerFormat {
  const { tokenizer } = serving;
  const created = Math.floor(Date.now() / 1000);
  const around = (choices: readonly object[]) => ({
    id: options.id,
    object: "text_completion",
    created,
    model: serving.servedModelName,
    system_fingerprint: null,
    choices,
  });
  const newWriter = () => new CompletionLogprobWriter(tokenizer, options.logprobs ?? 0);
  /** Offsets go on from one streamed chunk of a choice to the next. */
  const writers = new Map<number, CompletionLogprobWriter>();
  const writerOf = ({ index }: Choice): CompletionLogprobWriter => {
    const writer = writers.get(index) ?? newWriter();
    writers.set(index, writer);
    return writer;
  };
  const echoed = (prompt: Prompt): string => {
    if (prompt.input.kind === "text") return prompt.input.text;
    return tokenizer?.decode(prompt.tokenIds, { skipSpecialTokens: false }) ?? "";
  };
  const entry = (
    { index }: Choice,
    text: string,
    logprobs: CompletionLogprobs | null,
    extra: object,
  ) => ({ index, text, logprobs, finish_reason: null, ...extra });

  return {
    chunk: around,
    choices: (choice, event) => {
      if (event.type === "prompt") {
        const ids = options.tokenIds ? { prompt_token_ids: choice.prompt.tokenIds } : {};
        if (!options.echo) {
          return options.tokenIds ? [entry(choice, "", null, { ...ids, token_ids: [] })] : [];
        }
        const logprobs =
          options.logprobs === undefined
            ? null
            : writerOf(choice).prompt(choice.prompt.tokenIds, event.promptLogprobs ?? []);
        return [entry(choice, echoed(choice.prompt), logprobs, ids)];
      }
      if (event.type === "finish") {
        const ids = options.tokenIds ? { token_ids: finishTokenIds(event) } : {};
        const stop_reason = event.stopReason ?? null;
        const logprobs = event.logprobs ? writerOf(choice).generated(finishLogprobs(event)) : null;
        return [entry(choice, "", logprobs, { finish_reason: event.reason, stop_reason, ...ids })];
      }
      if (event.text === "" && event.logprobs === undefined && !options.tokenIds) return [];
      const logprobs = event.logprobs ? writerOf(choice).generated(event.logprobs) : null;
      const ids = options.tokenIds ? { token_ids: event.tokenIds } : {};
      return [entry(choice, event.text, logprobs, ids)];
    },
    whole: (results) => around(results.map(wholeChoice)),
  };

  function wholeChoice({ choice, prompt, text, tokenIds, logprobs, finish }: ChoiceResult): object {
    const writer = newWriter();
    const promptPart = options.echo
      ? writer.prompt(choice.prompt.tokenIds, prompt.promptLogprobs ?? [])
      : undefined;
    const ownPart = writer.generated(logprobs);
    const joined = promptPart === undefined ? ownPart : joinLogprobs(promptPart, ownPart);
    const top = options.promptLogprobs;
    return {
      index: choice.index,
      text: options.echo ? echoed(choice.prompt) + text : text,
      logprobs: options.logprobs === undefined ? null : joined,
      finish_reason: finish.reason,
      stop_reason: finish.stopReason ?? null,
      ...(top === undefined
        ? {}
        : { prompt_logprobs: promptLogprobs(tokenizer, prompt.promptLogprobs ?? [], top) }),
      ...(options.tokenIds
        ? { prompt_token_ids: choice.prompt.tokenIds, token_ids: tokenIds }
        : {}),
    };
  }
}

function maxOf(a: number | undefined, b: number | undefined): number | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return Math.max(a, b);
}
