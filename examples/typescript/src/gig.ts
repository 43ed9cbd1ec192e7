// A gig service's payment from booking to payout: npm run gig -- GIG [EXPERT [CLIENT]]

import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import {
  type InitiatePaymentResponse,
  OnDeadline,
  PaymentService,
  PaymentState,
} from "../gen/marketplace/payments/v1/payments_pb.js";
import { connectByEnvironment, refusalOf, untilAnswered } from "./payments.js";

const [gig = "logo", expert = "ann", client = "bob"] = process.argv.slice(2);
const { SIMULATOR_URL } = process.env;
const payments = createClient(PaymentService, connectByEnvironment());

// 1. Book. The key comes from the gig: a restarted process repeats this call and gets its answer.
const initiated = await untilAnswered(() =>
  payments.initiatePayment({
    clientId: client,
    expertId: expert,
    gigId: gig,
    amount: { minorUnits: 10_000n, currencyCode: "USD" },
    onDeadline: OnDeadline.CAPTURE,
    idempotencyKey: `initiate-${gig}`,
  }),
);
const paymentId = initiated.payment?.paymentId ?? "";
console.log(`initiated ${paymentId}`);

// 2. The client pays in the browser, with the secret that we hand over.
await payAsTheBrowserDoes(initiated);

// 3. Wait until the money is secured. The browser's word is not enough. A service does not poll: it
// follows the feed (follow.ts), and reads a payment when an event says that it has changed.
const unpaid = [PaymentState.PENDING, PaymentState.FAILED];
for (let state = PaymentState.PENDING; unpaid.includes(state); await sleep(250)) {
  ({ state } = await untilAnswered(() => payments.getPaymentStatus({ paymentId })));
}

// 4. The gig is done. Twice with the same key is once.
for (const time of ["first", "second"]) {
  const { payment } = await untilAnswered(() =>
    payments.capturePayment({ paymentId, notes: "accepted by the client", idempotencyKey: `accept-${gig}` }),
  );
  console.log(`${time} answer: ${stateName(payment?.state)}, version ${payment?.version}`);
}

// 5. With another key it is another capture, and is refused with the facts.
try {
  await untilAnswered(() => payments.capturePayment({ paymentId, idempotencyKey: `accept-${gig}-again` }));
} catch (error) {
  const refusal = refusalOf(error);
  switch (refusal.reason) {
    case "WRONG_STATE":
      console.log(`refused: ${refusal.reason}, the payment is ${refusal.metadata["state"]}`);
      break;
    case "EXPERT_NOT_READY":
      console.log(`ask the expert for: ${refusal.metadata["requirements_due"]}`);
      break;
    default:
      throw error;
  }
}

/** What Stripe.js sends. Without a simulator a person opens the pay page: see examples/checkout. */
async function payAsTheBrowserDoes({ clientSecret, publishableKey }: InitiatePaymentResponse): Promise<void> {
  if (!SIMULATOR_URL) return console.log("now pay with the client secret");
  const intent = clientSecret.split("_secret_")[0];
  const answer = await fetch(`${SIMULATOR_URL}/v1/payment_intents/${intent}/confirm`, {
    method: "POST",
    body: new URLSearchParams({
      key: publishableKey,
      client_secret: clientSecret,
      payment_method: "pm_card_visa",
    }),
  });
  // 400: it was paid before, because this process was started again.
  console.log(`the browser: ${answer.ok ? "paid" : `HTTP ${answer.status}`}`);
}

function stateName(state: PaymentState | undefined): string {
  return PaymentState[state ?? PaymentState.UNSPECIFIED];
}
