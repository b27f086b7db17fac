/** Text in and out of token ids. */

/** One message of a conversation. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** A model's tokenizer and chat template. */
export interface Tokenizer {
  /** Ids of a text; `addSpecialTokens` (true) adds what the model wants around every text, such as a first token. */
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): number[];
  /** Text of the ids; bytes that do not form UTF-8 become U+FFFD, ids without a token nothing. `skipSpecialTokens` is false. */
  decode(ids: readonly number[], options?: { readonly skipSpecialTokens?: boolean }): string;
  /** The token's own bytes, as UTF-8 fragments may need them; empty for an id without a token. */
  tokenBytes(id: number): Uint8Array;
  /** Whether the id is a special token, which no text of a user means. */
  isSpecial(id: number): boolean;
  /**
   * The text of ids is that of their tokens' bytes one after another, but for a first space where `stripsFirstSpace`;
   * not so where the decoder looks at neighbours.
   */
  readonly byteLevel: boolean;
  /** Encoding puts a space before a text, and decoding takes one away; byteLevel. */
  readonly stripsFirstSpace: boolean;
  /** Highest token id + 1; the model's vocabSize may be larger, never smaller. */
  readonly vocabSize: number;
  /** Whether a chat template came with the model. */
  readonly hasChatTemplate: boolean;
  /** Prompt text of a conversation, the assistant's turn opened. Throws ChatTemplateError with the template's own message. */
  renderChat(messages: readonly ChatMessage[]): string;
}
