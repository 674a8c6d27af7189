"""A local stand-in for Stripe: Checkout, refunds, Connect and webhooks, on this machine only.

Its one job: let the server run, and be tested, without an account at Stripe. It is a development
tool and a process of its own (`python -m dispatch.stripe_standin`); it imports nothing else of
ours, and nothing of ours but tests imports it. No card, no money, no outside network: it listens on
loopback, takes test keys only, and says on every page what it is. What it does not know it refuses
as Stripe refuses an unknown parameter, so that a call that works here is one that Stripe
understands.

    params        bytes of a form -> nested values, or Stripe's error object
    forms         a typed request for every call
    objects       our rows of checkout -> Stripe's objects
    connected     our rows of connected accounts -> Stripe's objects
    schedule      when events are delivered
    ledger        the rows and the balances, in SQLite, so that a restart continues
    telling       events
    checkout      the rules: pay once, what expires when
    refunding     the rules: never refund more than was paid
    onboarding    the rules: who may receive transfers
    transferring  the rules: never send more than is there
    handlers      which call does what
    delivery      signed webhooks: in parallel, retried, kept until delivered
    faults        what goes wrong on request
    api           keys, idempotency and error objects around the handlers
    page, hosted  the pages for checkout and onboarding
    books         whether money is conserved
    control       `/_standin`
    server        the app and its process

As at Stripe, an idempotency key gives the first answer again for a day, a refusal too; parameters
that cannot be understood are not kept for it; while a call with it is under way, another one gets
409. The charge of a checkout is available at once. A refund takes its money at once, also while it
is pending, and may leave the platform below zero; a reversal may leave an account there.

Control, for tests: JSON to `/_standin/…` from this machine, and from no page in a browser.

    GET    ledger                what there is, and `sums`: `missing` is 0 while money is conserved
    POST   deliver               {event_id, times}: one event again, that often at once
    POST   delivery              {copies, shuffle_seconds, seed, held}: how events are delivered
                                 from now on; without `held` those held back are released
    POST   faults                {path, do, method, times, late_ms, status, code, message}: what
                                 befalls the next calls, see `faults.Fault`
    GET    faults                those still to come; DELETE: no more of them
    DELETE keys                  as if a day had passed for every idempotency key
    POST   refunds               {payment_intent, amount, pending}: by hand, as in the dashboard
    POST   refunds/ID            {}: it succeeds; {failure_reason}: it fails, even when it had
                                 succeeded
    POST   accounts/ID           {}: it is set up; {disabled_reason}: it is disabled
    POST   accounts/ID/payouts   {amount, currency}: it takes money to its bank
    POST   foreign_checkouts     {account, metadata, client_reference_id, amount_total, currency}:
                                 a checkout is paid in a connected account, which wrote what it
                                 liked onto it
"""

from .server import create_app, run

__all__ = ["create_app", "run"]
