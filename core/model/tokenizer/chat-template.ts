/** A model's chat template: a conversation → the text of its prompt. The only user of `@huggingface/jinja`. */

import { Template } from "@huggingface/jinja";

import { errorMessage } from "../../error-message.ts";
import { isJsonObject } from "../checkpoint/json-file.ts";
import { strftime } from "./strftime.ts";
import type { ChatMessage } from "./text.ts";

/** The chat template refuses the conversation, or there is none; the message is the template's own. */
export class ChatTemplateError extends Error {
  override readonly name = "ChatTemplateError";
}

/** Renders a conversation. Throws ChatTemplateError. */
export type ChatTemplate = (messages: readonly ChatMessage[]) => string;

/** Values that templates refer to by name, such as `bos_token`. */
export type TemplateTokens = Readonly<Record<string, string>>;

/** The library's own speaks the machine's language and knows few directives; `render` can not set it, a template can. */
const OWN_STRFTIME = "{% set strftime_now = own_strftime_now %}";

/** Compiles a Jinja chat template, which may ask `now` for the time. Throws Error with the parser's message. */
export function compileChatTemplate(
  source: string,
  tokens: TemplateTokens,
  now: () => Date = () => new Date(),
): ChatTemplate {
  // As Jinja does it; the library takes a carriage return for text.
  const template = new Template(source.replaceAll(/\r\n?/gu, "\n"));
  template.parsed.body.unshift(...new Template(OWN_STRFTIME).parsed.body);
  return (messages) => {
    try {
      return template.render({
        ...tokens,
        messages: messages.map(({ role, content }) => ({ role, content })),
        add_generation_prompt: true,
        // Templates test these with `is not none`, which an undefined name would pass.
        tools: null,
        documents: null,
        own_strftime_now: (format: string) => strftime(now(), format),
      });
    } catch (error) {
      throw new ChatTemplateError(errorMessage(error));
    }
  };
}

/**
 * The template of tokenizer_config.json's `chat_template`: a string, or a list of {name, template} of which "default"
 * counts, or the only one. Undefined where there is none. Throws TypeError where it is something else.
 */
export function templateSource(value: unknown): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  const expectation = "chat_template is neither a string nor a list of {name, template}";
  if (!Array.isArray(value)) throw new TypeError(expectation);
  const named = value.map((entry: unknown) => {
    if (isJsonObject(entry) && typeof entry.template === "string") {
      return { name: entry.name, template: entry.template };
    }
    throw new TypeError(expectation);
  });
  const chosen = named.find(({ name }) => name === "default");
  return (chosen ?? (named.length === 1 ? named[0] : undefined))?.template;
}
