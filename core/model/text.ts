/** Text in and out of token ids. */

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** A model's tokenizer and chat template. */
export interface Tokenizer {
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): number[];
  /** Text of the ids; bytes that do not form UTF-8 become U+FFFD. */
  decode(ids: readonly number[], options?: { readonly skipSpecialTokens?: boolean }): string;
  /** The token's own bytes, as UTF-8 fragments may need them. */
  tokenBytes(id: number): Uint8Array;
  /** Whether a chat template came with the model. */
  readonly hasChatTemplate: boolean;
  /** Prompt text of a conversation, the assistant's turn opened. Throws ChatTemplateError with the template's own message. */
  renderChat(messages: readonly ChatMessage[]): string;
}
