/** Reads server-sent events, as the OpenAI API streams its chunks. */

/** Longest event that is read, in characters. */
const MAX_EVENT_LENGTH = 4 * 1024 * 1024;

/** The `data` of each event of a body, as it comes. Throws where an event grows beyond 4 Mi characters. */
export async function* readEvents(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let pending = "";
  for await (const bytes of body) {
    pending += decoder.decode(bytes, { stream: true });
    const events = pending.split(/\r?\n\r?\n/);
    pending = events.pop() ?? "";
    if (pending.length > MAX_EVENT_LENGTH)
      throw new Error(`an event is longer than ${MAX_EVENT_LENGTH} characters`);
    for (const event of events) {
      const data = dataOf(event);
      if (data !== undefined) yield data;
    }
  }
}

/** The data lines of an event, joined; undefined where it has none, as in a comment that keeps a connection alive. */
function dataOf(event: string): string | undefined {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  if (lines.length === 0) return undefined;
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
