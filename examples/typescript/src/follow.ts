// Follows the events of all payments, until Ctrl-C: npm run follow

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createClient } from "@connectrpc/connect";
import { EventService } from "../gen/marketplace/payments/v1/events_pb.js";
import { connectByEnvironment, watch } from "./payments.js";

// A service keeps its cursor in its database, in the transaction with what it did about the event.
const file = "feed.cursor";
const end = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => end.abort());

const events = createClient(EventService, connectByEnvironment());
const cursor = existsSync(file) ? readFileSync(file, "utf8") : "";
for await (const update of watch(events, cursor, end.signal)) {
  const { paymentId, sequence, kind } = update.event!;
  // Handle it here, and once for each `${paymentId}.${sequence}`. Ignore kinds that you do not know.
  console.log(`${paymentId}.${sequence} ${kind}`);
  writeFileSync(`${file}.new`, update.cursor);
  renameSync(`${file}.new`, file);
}
