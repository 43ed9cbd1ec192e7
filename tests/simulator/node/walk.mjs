// Drives the simulator by Stripe's own package for Node, which nobody here has written.
//
//   node walk.mjs http://127.0.0.1:12111 DIRECTORY-OF-NODE_MODULES
//
// Each step prints its name when it has passed. The first that fails ends the walk.

import assert from 'node:assert/strict';
import {createServer} from 'node:http';
import {createRequire} from 'node:module';

const [base, modules] = process.argv.slice(2);
const Stripe = createRequire(`${modules}/`)('stripe');
const {hostname, port, protocol} = new URL(base);
const stripe = new Stripe('sk_test_simulator', {
  host: hostname,
  port,
  protocol: protocol.slice(0, -1),
  maxNetworkRetries: 0,
});
const SECRET = 'whsec_walk';

async function control(path, body) {
  const answer = await fetch(`${base}/_simulator${path}`, {
    method: body === undefined ? 'GET' : 'POST',
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

function intent(more = {}) {
  return stripe.paymentIntents.create({
    amount: 10_000,
    currency: 'usd',
    capture_method: 'manual',
    allowed_payment_method_types: ['card'],
    ...more,
  });
}

async function refused(promise, type, expected) {
  const error = await promise.then(
    () => assert.fail('it was not refused'),
    (reason) => reason,
  );
  assert.equal(error.type, type, error.message);
  for (const [name, value] of Object.entries(expected)) assert.equal(error[name], value);
  return error;
}

// What one step leaves to the next.
const made = {deliveries: []};

const steps = {
  async version() {
    assert.equal(Stripe.API_VERSION ?? stripe.getApiField('version'), process.env.API_VERSION);
  },

  async webhook_endpoint() {
    const server = createServer((request, response) => {
      const parts = [];
      request.on('data', (part) => parts.push(part));
      request.on('end', () => {
        made.deliveries.push([Buffer.concat(parts), request.headers['stripe-signature']]);
        response.end('{}');
      });
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${server.address().port}/`;
    const targets = [{scope: 'platform', url, secrets: [SECRET]}];
    await control('/webhooks', {targets});
    made.server = server;
  },

  async account() {
    const account = await stripe.accounts.create({
      country: 'US',
      email: 'expert@example.com',
      business_type: 'individual',
      capabilities: {card_payments: {requested: true}, transfers: {requested: true}},
      controller: {
        fees: {payer: 'application'},
        losses: {payments: 'application'},
        requirement_collection: 'stripe',
        stripe_dashboard: {type: 'express'},
      },
    });
    assert.equal(account.payouts_enabled, false);
    made.account = account.id;
  },

  async account_link() {
    const link = await stripe.accountLinks.create({
      account: made.account,
      type: 'account_onboarding',
      refresh_url: 'https://example.com/refresh',
      return_url: 'https://example.com/return',
    });
    assert.ok(link.url.startsWith(base));
    await control(`/accounts/${made.account}/complete_onboarding`, {outcome: 'complete'});
    const account = await stripe.accounts.retrieve(made.account);
    assert.deepEqual([account.details_submitted, account.payouts_enabled], [true, true]);
    assert.equal(account.capabilities.transfers, 'active');
    const login = await stripe.accounts.createLoginLink(made.account);
    assert.equal(login.object, 'login_link');
  },

  async intent() {
    const created = await intent({
      application_fee_amount: 1_000,
      transfer_data: {destination: made.account},
      metadata: {gig: '7'},
    });
    assert.equal(created.status, 'requires_payment_method');
    assert.deepEqual(created.allowed_payment_method_types, ['card']);
    assert.deepEqual(created.payment_method_types, ['card']);
    made.intent = created.id;
  },

  async confirm() {
    const held = await stripe.paymentIntents.confirm(made.intent, {
      payment_method: 'pm_card_bypassPending',
      expand: ['latest_charge'],
    });
    assert.deepEqual([held.status, held.amount_capturable], ['requires_capture', 10_000]);
    assert.ok(held.latest_charge.payment_method_details.card.capture_before > held.created);
  },

  async partial_capture() {
    const done = await stripe.paymentIntents.capture(made.intent, {
      amount_to_capture: 6_000,
      application_fee_amount: 600,
      expand: ['latest_charge.balance_transaction', 'latest_charge.transfer'],
    });
    const charge = done.latest_charge;
    assert.deepEqual([done.status, done.amount_received], ['succeeded', 6_000]);
    assert.deepEqual([charge.amount_captured, charge.amount_refunded], [6_000, 0]);
    assert.equal(charge.balance_transaction.amount, 6_000);
    assert.equal(charge.transfer.amount, 6_000);
    const refunds = await stripe.refunds.list({payment_intent: made.intent});
    assert.deepEqual(refunds.data, []);
    [made.charge, made.transfer, made.fee] = [charge.id, charge.transfer.id, charge.application_fee];
  },

  async refund() {
    // A refund needs available money of the platform.
    await control('/balance', {amount: 100_000, currency: 'usd', type: 'topup'});
    const refund = await stripe.refunds.create({payment_intent: made.intent, amount: 2_000});
    assert.deepEqual([refund.status, refund.amount], ['succeeded', 2_000]);
    const charge = await stripe.charges.retrieve(made.charge);
    assert.deepEqual([charge.amount_refunded, charge.refunded], [2_000, false]);
    await refused(
      stripe.refunds.create({payment_intent: made.intent, amount: 4_001}),
      'StripeInvalidRequestError',
      {statusCode: 400, param: 'amount'},
    );
  },

  async reversal() {
    const reversal = await stripe.transfers.createReversal(made.transfer, {amount: 1_500});
    assert.deepEqual([reversal.amount, reversal.transfer], [1_500, made.transfer]);
    const transfer = await stripe.transfers.retrieve(made.transfer);
    assert.deepEqual([transfer.amount_reversed, transfer.reversals.data.length], [1_500, 1]);
  },

  async fee_refund() {
    const back = await stripe.applicationFees.createRefund(made.fee, {amount: 200});
    assert.deepEqual([back.amount, back.fee], [200, made.fee]);
    const fee = await stripe.applicationFees.retrieve(made.fee);
    assert.equal(fee.amount_refunded, 200);
  },

  async cancel() {
    const held = await intent({confirm: true, payment_method: 'pm_card_visa', return_url: base});
    const gone = await stripe.paymentIntents.cancel(held.id, {expand: ['latest_charge']});
    assert.deepEqual([gone.status, gone.latest_charge.refunded], ['canceled', false]);
  },

  async idempotency() {
    const options = {idempotencyKey: 'walk-1'};
    const params = {amount: 500, currency: 'usd', allowed_payment_method_types: ['card']};
    const first = await stripe.paymentIntents.create(params, options);
    const again = await stripe.paymentIntents.create(params, options);
    assert.equal(again.id, first.id);
    assert.equal(again.lastResponse.headers['idempotent-replayed'], 'true');
    await refused(
      stripe.paymentIntents.create({...params, amount: 600}, options),
      'StripeIdempotencyError',
      {statusCode: 400},
    );
  },

  async paging() {
    for (let count = 0; count < 5; count += 1) await intent();
    const all = await stripe.paymentIntents.list({limit: 2}).autoPagingToArray({limit: 100});
    assert.ok(all.length >= 8);
    assert.equal(new Set(all.map((one) => one.id)).size, all.length);
    assert.equal(all.at(-1).id, made.intent);
  },

  async payout() {
    const options = {stripeAccount: made.account};
    const {available} = await stripe.balance.retrieve({}, options);
    const usd = available.find((part) => part.currency === 'usd').amount;
    // The captured part less the fee and the reversal, and the fee that came back.
    assert.equal(usd, 6_000 - 600 - 1_500 + 200);
    const payout = await stripe.payouts.create({amount: usd, currency: 'usd'}, options);
    assert.deepEqual([payout.status, payout.amount], ['pending', usd]);
    await control(`/payouts/${payout.id}/pay`, {});
    const paid = await stripe.payouts.retrieve(payout.id, {}, options);
    assert.equal(paid.status, 'paid');
  },

  async dispute() {
    const paid = await intent({
      capture_method: 'automatic',
      confirm: true,
      payment_method: 'pm_card_createDispute',
      return_url: base,
    });
    const [dispute] = (await stripe.disputes.list({payment_intent: paid.id})).data;
    assert.deepEqual([dispute.status, dispute.amount], ['needs_response', 10_000]);
    assert.equal(dispute.balance_transactions[0].amount, -10_000);
    await refused(stripe.refunds.create({payment_intent: paid.id}), 'StripeInvalidRequestError', {
      code: 'charge_disputed',
    });
    made.dispute = dispute.id;
  },

  async evidence() {
    const staged = await stripe.disputes.update(made.dispute, {
      evidence: {uncategorized_text: 'winning_evidence'},
      submit: false,
    });
    assert.deepEqual([staged.status, staged.evidence_details.has_evidence], ['needs_response', true]);
    const submitted = await stripe.disputes.update(made.dispute, {submit: true});
    assert.equal(submitted.status, 'under_review');
    await control('/clock', {advance_seconds: 61});
    assert.equal((await stripe.disputes.retrieve(made.dispute)).status, 'won');
  },

  async decline() {
    const error = await refused(
      intent({confirm: true, payment_method: 'pm_card_chargeDeclinedInsufficientFunds', return_url: base}),
      'StripeCardError',
      {statusCode: 402, code: 'card_declined', decline_code: 'insufficient_funds'},
    );
    assert.equal(error.payment_intent.status, 'requires_payment_method');
  },

  async what_this_version_has_no_longer() {
    await refused(
      stripe.paymentIntents.create({amount: 500, currency: 'usd', payment_method_types: ['card']}),
      'StripeInvalidRequestError',
      {code: 'payment_method_types_no_longer_supported', param: 'payment_method_types'},
    );
    await refused(stripe.paymentIntents.retrieve('pi_none'), 'StripeInvalidRequestError', {
      statusCode: 404,
      code: 'resource_missing',
    });
  },

  async webhooks() {
    const {settled} = await control('/webhooks/settle', {seconds: 10});
    assert.equal(settled, true);
    const types = new Set();
    for (const [body, signature] of made.deliveries) {
      const event = stripe.webhooks.constructEvent(body, signature, SECRET);
      assert.equal(event.api_version, process.env.API_VERSION);
      types.add(event.type);
    }
    for (const type of [
      'charge.captured',
      'charge.dispute.closed',
      'charge.refunded',
      'payment_intent.canceled',
      'refund.created',
      'transfer.reversed',
    ])
      assert.ok(types.has(type), `no ${type} among ${[...types]}`);
    const [body, signature] = made.deliveries[0];
    assert.throws(() => stripe.webhooks.constructEvent(body, signature, 'whsec_of_a_forger'), {
      type: 'StripeSignatureVerificationError',
    });
  },
};

try {
  for (const [name, step] of Object.entries(steps)) {
    made.step = name;
    await step();
    console.log(name);
  }
} catch (error) {
  console.error(`${made.step}: ${error.stack}`);
  process.exitCode = 1;
} finally {
  made.server?.close();
  made.server?.closeAllConnections();
}
