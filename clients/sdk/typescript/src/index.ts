/** A typed client of the API: paths, bodies and answers are those of the OpenAPI document. */

import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.d.ts";

export type { components, paths };
/** An error, as the API says every one (RFC 9457). */
export type Problem = components["schemas"]["Problem"];
export type Platform = Client<paths>;

/** Return a client. `credential` is an access token or an API key; without one only the public part answers. */
export function connect(baseUrl: string, credential?: string): Platform {
  const headers: Record<string, string> = credential ? { authorization: `Bearer ${credential}` } : {};
  return createClient<paths>({ baseUrl, headers });
}
