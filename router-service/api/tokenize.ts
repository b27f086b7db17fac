/** POST /tokenize and /detokenize, as vLLM has them. */

import { InvalidRequestError } from "../engine/errors.ts";
import { detokenizeSchema, tokenizeSchema } from "./openai-schemas.ts";
import { encodeText, renderChat, requireTokenizer } from "./prompts.ts";
import { parseBody } from "./request-body.ts";
import { checkTokenId } from "./sampling.ts";
import { checkModel, type Serving } from "./serving.ts";
import { tokenText } from "./token-text.ts";

/** Token ids of `prompt` or of `messages` rendered by the chat template. */
export function tokenize(serving: Serving, body: unknown): object {
  const fields = parseBody(tokenizeSchema, body, serving.log);
  checkModel(serving, fields.model);
  const { prompt, messages } = fields;
  if ((prompt === undefined) === (messages === undefined)) {
    const problem = prompt === undefined ? "is missing" : "can not stand beside messages";
    throw new InvalidRequestError(
      `prompt: ${problem}, expected either prompt or messages`,
      "prompt",
    );
  }
  const field = messages === undefined ? "prompt" : "messages";
  const tokenizer = requireTokenizer(serving, field);
  const text = messages === undefined ? (prompt ?? "") : renderChat(tokenizer, messages, field);
  const addSpecialTokens = fields.add_special_tokens ?? messages === undefined;
  const tokens = encodeText(serving, tokenizer, text, field, addSpecialTokens);
  return {
    count: tokens.length,
    max_model_len: serving.engine.maxModelLen,
    tokens,
    token_strs: fields.return_token_strs ? tokens.map((id) => tokenText(tokenizer, id)) : null,
  };
}

/** Text of `tokens`. */
export function detokenize(serving: Serving, body: unknown): object {
  const fields = parseBody(detokenizeSchema, body, serving.log);
  checkModel(serving, fields.model);
  const tokenizer = requireTokenizer(serving, "tokens");
  fields.tokens.forEach((id, i) => checkTokenId(id, serving.config.vocabSize, `tokens[${i}]`));
  return { prompt: tokenizer.decode(fields.tokens, { skipSpecialTokens: false }) };
}
