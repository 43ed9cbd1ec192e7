// The channel to the payment service, its errors as values, and its feed of events.
// Copy this file: it knows nothing of gigs.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import type { EventService, WatchEventsResponse } from "../gen/marketplace/payments/v1/events_pb.js";

export interface Settings {
  /** http:// where a service mesh encrypts or on one machine, https:// otherwise. */
  url: string;
  /** Read for each call, because the platform replaces the file before the token expires. */
  tokenFile?: string | undefined;
  /** Who signed the service's certificate. */
  caFile?: string | undefined;
}

/** Opens the one transport of this process: HTTP/2, a deadline for each call, pings. */
export function connect(settings: Settings): Transport {
  return createGrpcTransport({
    baseUrl: settings.url,
    // A deadline ends the call and not what it has started: repeat it with the same key.
    defaultTimeoutMs: 30_000,
    // A dead connection is noticed. The service refuses pings that come more often than every 30 s.
    pingIntervalMs: 60_000,
    pingTimeoutMs: 20_000,
    pingIdleConnection: true,
    interceptors: settings.tokenFile ? [bearer(settings.tokenFile)] : [],
    ...(settings.caFile ? { nodeOptions: { ca: readFileSync(settings.caFile) } } : {}),
  });
}

/** The same by the settings of a deployment. */
export function connectByEnvironment(): Transport {
  const { PAYMENTS_ADDRESS: address = "127.0.0.1:50051", PAYMENTS_CA_FILE: caFile } = process.env;
  const url = `${caFile ? "https" : "http"}://${address}`;
  return connect({ url, caFile, tokenFile: process.env["PAYMENTS_TOKEN_FILE"] });
}

function bearer(file: string): Interceptor {
  return (next) => async (request) => {
    request.header.set("authorization", `Bearer ${readFileSync(file, "utf8").trim()}`);
    return next(request);
  };
}

/** The outcome is unknown, or something else is in progress. */
const PASSING: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.DeadlineExceeded,
  Code.ResourceExhausted,
  Code.Aborted,
  // Never from the service itself: a proxy or a broken connection says so.
  Code.Canceled,
  Code.Unknown,
  Code.Internal,
]);

/** Why a call failed. `reason` is empty if the service itself has not answered. */
export class Refusal {
  readonly code: Code;
  /** A name of ErrorReason without its prefix, such as EXPERT_NOT_READY. */
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** What is wrong with each field, after InvalidArgument. */
  readonly fields: Readonly<Record<string, string>>;
  /** How long the service asks us to wait. */
  readonly retryMs: number | undefined;

  constructor(error: ConnectError) {
    const info = error.findDetails(ErrorInfoSchema).find((one) => one.domain === "payments.marketplace");
    const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
    const violations = error.findDetails(BadRequestSchema).flatMap((one) => one.fieldViolations);
    this.code = error.code;
    this.reason = info?.reason ?? "";
    this.metadata = info?.metadata ?? {};
    this.fields = Object.fromEntries(violations.map((one) => [one.field, one.description]));
    this.retryMs = delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
  }

  /** Whether the same call with the same key is worth another try, after a pause. */
  get isPassing(): boolean {
    return PASSING.has(this.code) && this.reason !== "VERSION_MISMATCH";
  }

  toString(): string {
    return this.reason || Code[this.code];
  }
}

/** Returns what an error of a call says. Any other error is a fault of ours, and thrown. */
export function refusalOf(error: unknown): Refusal {
  if (error instanceof ConnectError) return new Refusal(error);
  throw error;
}

/**
 * Makes a call, and repeats it until its outcome is known. The call must be the same each time,
 * its idempotency key included. Throws the last error when the time is over.
 */
export async function untilAnswered<T>(call: () => Promise<T>, seconds = 60): Promise<T> {
  const until = Date.now() + seconds * 1000;
  for (let pause = 250; ; pause = Math.min(pause * 2, 10_000)) {
    try {
      return await call();
    } catch (error) {
      const refusal = refusalOf(error);
      const wait = Math.ceil(refusal.retryMs ?? pause * (0.5 + Math.random() / 2));
      if (!refusal.isPassing || Date.now() + wait > until) throw error;
      const asked = refusal.retryMs === undefined ? "" : ", as the service asks";
      console.error(`${refusal}: again with the same key in ${wait} ms${asked}`);
      await sleep(wait);
    }
  }
}

/** Yields every event after the cursor, across disconnects, until the signal. */
export async function* watch(
  events: Client<typeof EventService>,
  afterCursor: string,
  signal: AbortSignal,
): AsyncGenerator<WatchEventsResponse> {
  while (!signal.aborted) {
    try {
      // 0 is no deadline: the stream lasts until the service ends it, after ten minutes.
      for await (const update of events.watchEvents({ afterCursor }, { signal, timeoutMs: 0 })) {
        afterCursor = update.cursor;
        yield update;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!refusalOf(error).isPassing) throw error;
    }
    if (!signal.aborted) await sleep(50 + Math.random() * 950);
  }
}
