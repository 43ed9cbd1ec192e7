// A stand-in for Stripe.js: the part of its interface that a page with a Payment Element uses.
// Card data stays in a frame of the simulator's origin, as Stripe's stays in a frame of Stripe's.
// What Stripe.js can do and this cannot is refused with a message that begins "stripe_simulator:".

(() => {
  "use strict";
  const ORIGIN = new URL(document.currentScript.src).origin;
  const forever = () => new Promise(() => {}); // the browser leaves the page

  function known(what, given, names) {
    for (const name of Object.keys(given ?? {})) {
      if (!names.includes(name)) throw new Error(`stripe_simulator: ${what} with ${name} is not simulated`);
    }
  }

  class PaymentElement {
    #handlers = { ready: [], loaderror: [] };
    #port;

    constructor(secrets) {
      this.secrets = secrets;
    }

    on(event, handler) {
      if (!(event in this.#handlers)) throw new Error(`stripe_simulator: the event ${event} is not simulated`);
      this.#handlers[event].push(handler);
      return this;
    }

    mount(where) {
      const place = typeof where === "string" ? document.querySelector(where) : where;
      if (!place) throw new Error(`stripe_simulator: there is no ${where} to mount the element into`);
      const frame = document.createElement("iframe");
      frame.src = `${ORIGIN}/_pages/elements/payment`;
      frame.title = "Secure payment input frame";
      Object.assign(frame.style, { border: "0", width: "100%", height: "20rem" });
      frame.addEventListener("load", () => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => {
          this.#port = port1;
          this.#emit("ready");
        };
        frame.contentWindow.postMessage(this.secrets, ORIGIN, [port2]);
      });
      frame.addEventListener("error", () => this.#emit("loaderror"));
      place.replaceChildren(frame);
    }

    confirm(returnUrl) {
      if (!this.#port) throw new Error("stripe_simulator: the element is not mounted, or not ready");
      return new Promise((resolve) => {
        this.#port.onmessage = ({ data }) => resolve(data);
        this.#port.postMessage({ returnUrl });
      });
    }

    #emit(event) {
      for (const handler of this.#handlers[event]) handler({ elementType: "payment" });
    }
  }

  class Elements {
    constructor(secrets) {
      this.secrets = secrets;
    }

    create(type, options) {
      if (type !== "payment") throw new Error(`stripe_simulator: the element ${type} is not simulated`);
      known("create", options, ["layout"]);
      this.element = new PaymentElement(this.secrets);
      return this.element;
    }
  }

  async function confirmPayment(given) {
    known("confirmPayment", given, ["elements", "confirmParams"]);
    known("confirmParams", given.confirmParams, ["return_url"]);
    const returnUrl = new URL(given.confirmParams.return_url);
    const { error, intent } = await given.elements.element.confirm(returnUrl.href);
    if (error) return { error };
    const { id, status, client_secret, next_action } = intent;
    if (status === "requires_action") {
      location.assign(next_action.redirect_to_url.url); // the bank's page, which leads to the return_url
      return forever();
    }
    returnUrl.searchParams.set("payment_intent", id);
    returnUrl.searchParams.set("payment_intent_client_secret", client_secret);
    returnUrl.searchParams.set("redirect_status", "succeeded");
    location.assign(returnUrl);
    return forever();
  }

  window.Stripe = (key) => {
    if (!key.startsWith("pk_")) throw new Error("stripe_simulator: give a publishable key, pk_…");
    return {
      elements(options) {
        known("elements", options, ["clientSecret", "appearance", "locale"]);
        return new Elements({ key, clientSecret: options.clientSecret });
      },
      confirmPayment,
    };
  };
})();
