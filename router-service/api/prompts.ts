/** From what a client sent to the token ids that the engine gets. */

import { ChatTemplateError } from "../../core/model/tokenizer/chat-template.ts";
import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import { NoTokenizerError } from "./api-errors.ts";
import type { PromptInput } from "./openai-schemas.ts";
import { checkTokenId } from "./sampling.ts";
import type { Serving } from "./serving.ts";

/** A prompt ready for the engine. */
export interface Prompt {
  readonly tokenIds: readonly number[];
  readonly input: PromptInput;
  /** The field that held it, as the client named it. */
  readonly field: string;
}

/**
 * Encodes a prompt and checks its ids.
 * Throws NoTokenizerError for text without a tokenizer, InvalidRequestError where it is empty, too long or not in the vocabulary.
 */
export function encodePrompt(
  serving: Serving,
  input: PromptInput,
  field: string,
  addSpecialTokens: boolean,
): Prompt {
  if (input.kind === "ids") {
    checkLength(serving, input.ids.length, field);
    input.ids.forEach((id, i) => checkTokenId(id, serving.config.vocabSize, `${field}[${i}]`));
    return { tokenIds: input.ids, input, field };
  }
  const tokenizer = requireTokenizer(serving, field);
  const text = input.kind === "text" ? input.text : renderChat(tokenizer, input.messages, field);
  const tokenIds = encodeText(serving, tokenizer, text, field, addSpecialTokens);
  checkLength(serving, tokenIds.length, field);
  return { tokenIds, input, field };
}

/** The tokenizer. Throws NoTokenizerError that names the field where the model has none. */
export function requireTokenizer(serving: Serving, field: string): Tokenizer {
  if (serving.tokenizer === undefined) throw new NoTokenizerError(field);
  return serving.tokenizer;
}

/** Token ids of a text; refuses at once a text so long that no tokenization of it fits the context. */
export function encodeText(
  serving: Serving,
  tokenizer: Tokenizer,
  text: string,
  field: string,
  addSpecialTokens: boolean,
): number[] {
  const { maxModelLen } = serving.engine;
  const bytes = Buffer.byteLength(text);
  if (bytes > maxModelLen * serving.longestTokenBytes) {
    throw new InvalidRequestError(
      `${field}: ${bytes} bytes of text can not fit the model's context of ${maxModelLen} tokens ` +
        `(a token has ${serving.longestTokenBytes} bytes at most)`,
      field,
      "context_length_exceeded",
    );
  }
  return tokenizer.encode(text, { addSpecialTokens });
}

/** Prompt text of a conversation. Throws InvalidRequestError with the template's own message. */
export function renderChat(
  tokenizer: Tokenizer,
  messages: Extract<PromptInput, { kind: "chat" }>["messages"],
  field: string,
): string {
  if (!tokenizer.hasChatTemplate) {
    const message = `${field}: the model has no chat template; send a prompt to the completions endpoint`;
    throw new InvalidRequestError(message, field, "no_chat_template");
  }
  try {
    return tokenizer.renderChat(messages);
  } catch (error) {
    if (!(error instanceof ChatTemplateError)) throw error;
    throw new InvalidRequestError(`${field}: ${error.message}`, field, "chat_template_error");
  }
}

/** Bytes of the vocabulary's longest token. */
export function longestToken(tokenizer: Tokenizer): number {
  let longest = 1;
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    longest = Math.max(longest, tokenizer.tokenBytes(id).length);
  }
  return longest;
}

function checkLength(serving: Serving, tokens: number, field: string): void {
  const { maxModelLen } = serving.engine;
  if (tokens === 0) throw new InvalidRequestError(`${field}: has no tokens`, field);
  if (tokens <= maxModelLen) return;
  throw new InvalidRequestError(
    `${field}: ${tokens} tokens are more than the model's context of ${maxModelLen} tokens`,
    field,
    "context_length_exceeded",
  );
}
