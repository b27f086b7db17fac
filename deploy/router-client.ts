/** What the command line asks of a running router. */

import { z } from "zod";

/** Longest wait for one answer, milliseconds. */
const ANSWER_MS = 90_000;

/** Flags that name a router. */
export const routerFlags = {
  url: z
    .string()
    .regex(/^https?:\/\/\S+$/)
    .default("http://127.0.0.1:8000")
    .meta({
      description: "HTTP address of any router of the cluster",
      placeholder: "URL",
      expectation: "an address like http://10.0.0.1:8000",
    }),
  apiKey: z.string().min(1).optional().meta({
    description: "Key that the router asks for",
    placeholder: "KEY",
    defaultText: "none",
    secret: true,
  }),
};

/** A router, and the key to it. */
export interface RouterAddress {
  readonly url: string;
  readonly apiKey?: string | undefined;
}

/** The answer of a router as JSON. Rejects with an Error that names the router and says what is wrong. */
export async function askRouter(
  { url, apiKey }: RouterAddress,
  method: "GET" | "POST" | "DELETE",
  path: string,
  body?: object,
): Promise<unknown> {
  const address = url.replace(/\/+$/, "");
  const headers = {
    ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
    ...(body !== undefined && { "content-type": "application/json" }),
  };
  const init = {
    method,
    headers,
    signal: AbortSignal.timeout(ANSWER_MS),
    ...(body !== undefined && { body: JSON.stringify(body) }),
  };
  let response: Response;
  let text: string;
  try {
    response = await fetch(`${address}${path}`, init);
    text = await response.text();
  } catch (error) {
    throw new Error(`router at ${address}: ${causeOf(error)}`, { cause: error });
  }
  if (response.ok) return JSON.parse(text) as unknown;
  throw new Error(`router at ${address}: ${messageOf(text) ?? `HTTP ${response.status}`}`);
}

/** fetch says only that it failed; why is in the cause. */
function causeOf(error: unknown): string {
  const { cause, message } = error as Error;
  const reason = cause instanceof Error ? cause.message : "";
  return reason === "" ? message : reason;
}

function messageOf(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { error?: { message?: string } }).error?.message;
  } catch {
    return undefined;
  }
}
