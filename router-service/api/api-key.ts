/** The API key of both doors. */

import { createHash, timingSafeEqual } from "node:crypto";

import { UnauthenticatedError } from "./api-errors.ts";

/** Checks an Authorization header or metadata value; throws UnauthenticatedError. Without a key everyone may come in. */
export type CheckApiKey = (authorization: string | undefined) => void;

/** A check against one key that takes the same time however much of it is right. */
export function createApiKeyCheck(apiKey: string | undefined): CheckApiKey {
  if (apiKey === undefined) return () => undefined;
  const expected = digest(apiKey);
  return (authorization) => {
    const given = /^bearer\s+(\S+)\s*$/i.exec(authorization ?? "")?.[1];
    if (given === undefined) {
      throw new UnauthenticatedError("no API key: send `Authorization: Bearer <key>`");
    }
    if (!timingSafeEqual(digest(given), expected)) {
      throw new UnauthenticatedError("the API key is not valid");
    }
  };
}

/** Digests have one length, so that not even the key's length shows. */
function digest(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}
