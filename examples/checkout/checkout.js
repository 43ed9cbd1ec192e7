// The client's side of a payment. It works with Stripe.js and with the simulator's stand-in.

const api = `/api${location.pathname}/payment`; // /api/gigs/GIG/payment
const form = document.getElementById("form");
const button = document.getElementById("pay");

const WORDS = {
  IN_ESCROW: "Paid. Your money is held until the gig is done.",
  CAPTURED: "The gig is done, and the expert is paid.",
  CANCELED: "This payment was called off. Nothing is charged.",
  EXPIRED: "The time to pay is over. Nothing is charged.",
  REFUNDED: "You have got your money back.",
};
/** The client can pay: nothing was tried yet, or the card was declined. */
const OPEN = ["PENDING", "FAILED"];

const say = (words) => (document.getElementById("message").textContent = words);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ask(method) {
  const answer = await fetch(api, { method, headers: { "X-Requested-With": "checkout" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message);
  return body;
}

/**
 * Stripe has sent the browser back. Only our own server knows what came of it, perhaps a moment
 * later. So after an attempt that succeeded, FAILED is what it knows of the attempt before.
 */
async function outcome(attempt) {
  form.hidden = true;
  say("Your payment is being confirmed.");
  for (let tries = 0; tries < 60; tries++, await pause(500)) {
    const { state, message } = await ask("GET");
    if (WORDS[state]) return say(WORDS[state]);
    if (state === "FAILED" && attempt !== "succeeded") {
      await offer();
      return say(`${message} Please try another card.`);
    }
  }
  say("The confirmation takes longer than usual. You can close this page: we will write to you.");
}

/** Shows the form. Asking again for the same gig gives the same payment, and the same secret. */
async function offer() {
  const { clientSecret, publishableKey, state } = await ask("POST");
  if (!OPEN.includes(state)) return say(WORDS[state] ?? "This payment is in progress.");
  const stripe = Stripe(publishableKey);
  const elements = stripe.elements({ clientSecret });
  const element = elements.create("payment");
  element.on("ready", () => (button.disabled = false));
  element.on("loaderror", () => say("The form could not be loaded. Please try again later."));
  element.mount("#payment");
  form.hidden = false;
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true; // one press is one attempt
    say("");
    // If the bank asks for more (3D Secure), Stripe.js leads there. After a success, and after the
    // bank's page, the browser comes to the return_url. So what follows here is an error.
    const { error } = await stripe.confirmPayment({
      elements,
      confirmParams: { return_url: location.origin + location.pathname },
    });
    // Paid already, in another window.
    if (error.code === "payment_intent_unexpected_state") return outcome("succeeded");
    const shown = ["card_error", "validation_error"].includes(error.type);
    say(shown ? error.message : "Something went wrong. You can try again: nobody is charged twice.");
    button.disabled = false; // the same secret can be tried again
  };
}

async function main() {
  const attempt = new URLSearchParams(location.search).get("redirect_status");
  // The secret goes out of the address, so that it is in no history and no screenshot.
  history.replaceState(null, "", location.pathname);
  await (attempt ? outcome(attempt) : offer());
}

main().catch((fault) => say(fault.message));
