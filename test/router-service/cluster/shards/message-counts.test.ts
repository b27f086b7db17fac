import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { ShardStatus } from "../../../../proto/gen/switchyard/v1/expert.ts";
import { MessageCounts } from "../../../../router-service/cluster/shards/message-counts.ts";

const MIB = 1 << 20;

/** What a shard says that has read so many messages, and sent none but this. */
function said(messagesRead: number, messagesSent: number): ShardStatus {
  return ShardStatus.create({ messagesRead, messagesSent });
}

/** A stream whose shard speaks once a second and has read, at each second from 1, as many messages as `readAt` says. */
function firstJudgement(
  counts: MessageCounts,
  readAt: (second: number) => number,
  seconds: number,
): { readonly second: number; readonly text: string } | undefined {
  for (let second = 1; second <= seconds; second++) {
    counts.received();
    const text = counts.judge(said(readAt(second), second), 1000 * second);
    if (text !== undefined) return { second, text };
  }
  return undefined;
}

describe("the counts of a stream's messages", () => {
  it("find nothing where every message is read within two seconds, whatever is on its way", () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ sent: fc.nat({ max: 9 }), lag: fc.nat({ max: 2 }) }), {
          maxLength: 60,
        }),
        (seconds) => {
          const counts = new MessageCounts();
          const sentBy = [0];
          let read = 0;
          for (const [i, { sent, lag }] of seconds.entries()) {
            sentBy.push(sentBy[i] + sent);
            for (let n = 0; n < sent; n++) counts.sent(100);
            read = Math.max(read, sentBy[Math.max(0, i + 1 - lag)]);
            counts.received();
            assert.equal(counts.judge(said(read, i + 1), 1000 * i), undefined);
          }
        },
      ),
    );
  });

  it("find within five seconds that nothing more is read, whatever is sent meanwhile", () => {
    fc.assert(
      fc.property(fc.nat({ max: 50 }), fc.nat({ max: 50 }), (before, after) => {
        const counts = new MessageCounts();
        for (let n = 0; n < before + 1; n++) counts.sent();
        const found = firstJudgement(
          counts,
          () => {
            for (let n = 0; n < after; n++) counts.sent();
            return before;
          },
          9,
        );
        assert.ok(found !== undefined && found.second <= 5, JSON.stringify(found));
        const sent = before + 1 + found.second * after;
        const read = `the shard has read ${before} of ${sent} messages`;
        assert.match(found.text, new RegExp(`^${read}, no more for \\d+ ms$`));
      }),
    );
  });

  it("wait longer for large messages, at a quarter of a mebibyte a second, and for those that are not read alone", () => {
    const waits = [0, 2, 8].map((mebibytes) => {
      const counts = new MessageCounts();
      counts.sent(32 * MIB);
      counts.sent(mebibytes * MIB);
      return firstJudgement(counts, () => 1, 100)?.second;
    });
    assert.deepEqual(waits, [4, 12, 36]);
  });

  it("are bounded where the shard says nothing of them", () => {
    const counts = new MessageCounts();
    for (let n = 0; n < 131_072; n++) assert.equal(counts.sent(), undefined);
    assert.equal(counts.sent(), "131073 messages are not known to be read, the limit is 131072");
  });

  it("go on waiting while any message is read", () => {
    const counts = new MessageCounts();
    for (let n = 0; n < 100; n++) counts.sent();
    const found = firstJudgement(counts, (second) => Math.min(30, Math.floor(second / 3)), 200);
    assert.equal(found?.second, 93);
  });

  it("do not blame a shard whose counts a busy router reads late and all at once", () => {
    const counts = new MessageCounts();
    counts.sent();
    counts.received();
    assert.equal(counts.judge(said(0, 1), 0), undefined);
    for (let n = 2; n < 12; n++) {
      counts.received();
      assert.equal(counts.judge(said(0, n), 10_000 + n), undefined);
    }
    counts.received();
    assert.equal(counts.judge(said(1, 12), 10_020), undefined);
  });

  it("find messages of the shard's that did not come, and more read than were sent", () => {
    const counts = new MessageCounts();
    counts.received();
    assert.equal(counts.judge(said(0, 3), 0), "the shard has sent 3 messages, 1 came");
    assert.equal(counts.judge(said(2, 1), 0), "the shard has read 2 messages, 0 were sent");
  });
});
