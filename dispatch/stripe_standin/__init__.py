"""A local stand-in for Stripe: Checkout, refunds and signed webhooks, on this machine only.

Its one job: let the server run, and be tested, without an account at Stripe. It is a development
tool and a process of its own (`python -m dispatch.stripe_standin`); it imports nothing else of
ours, and nothing of ours but tests imports it. No card, no money, no outside network. What it does
not know it refuses as Stripe refuses an unknown parameter, so that a call that works here is one
that Stripe understands.

    params      bytes of a form -> typed request, or Stripe's error object
    objects     our rows -> Stripe's objects
    ledger      the rows, in SQLite, so that a restart continues
    actions     the rules: pay once, never refund more than was paid, what expires when
    delivery    signed webhooks: in parallel, retried, kept until delivered
    page        the hosted checkout page
    server      the routes
"""

from .server import create_app, run

__all__ = ["create_app", "run"]
