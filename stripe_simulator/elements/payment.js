// The frame with the card's fields. It alone sees them, and sends them to the API of its own origin.

const field = (id) => document.getElementById(id).value.trim();

function incomplete() {
  const faults = [
    [field("number") === "", "Your card number is incomplete."],
    [!/^\d{1,2}\s*\/\s*\d{2}$/.test(field("expiry")), "Your card's expiration date is incomplete."],
    [!/^\d{3,4}$/.test(field("cvc")), "Your card's security code is incomplete."],
  ];
  const message = faults.find(([wrong]) => wrong)?.[1];
  return message && { type: "validation_error", message };
}

async function confirm({ key, clientSecret }, returnUrl) {
  const error = incomplete();
  if (error) return { error };
  const [month, year] = field("expiry").split("/").map((part) => part.trim());
  const method = "payment_method_data";
  const answer = await fetch(`/v1/payment_intents/${clientSecret.split("_secret_")[0]}/confirm`, {
    method: "POST",
    body: new URLSearchParams({
      key,
      client_secret: clientSecret,
      return_url: returnUrl,
      [`${method}[type]`]: "card",
      [`${method}[card][number]`]: field("number"),
      [`${method}[card][exp_month]`]: month,
      [`${method}[card][exp_year]`]: year,
      [`${method}[card][cvc]`]: field("cvc"),
    }),
  });
  const shown = await answer.json();
  return answer.ok ? { intent: shown } : { error: shown.error };
}

window.addEventListener("message", ({ source, data, ports: [port] }) => {
  if (source !== parent) return;
  port.onmessage = async (asked) => {
    try {
      port.postMessage(await confirm(data, asked.data.returnUrl));
    } catch (fault) {
      port.postMessage({ error: { type: "api_connection_error", message: String(fault) } });
    }
  };
  port.postMessage("ready");
});
