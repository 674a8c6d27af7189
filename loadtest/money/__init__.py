"""Money under faults: payments, refunds and payouts in every order, with kills at every step.

`python -m loadtest.money --permutations 10000` runs seeded scenarios against real Postgres, with
several nodes in this process that die at a chosen step; `--real-kills 200` does it to a server's
processes with SIGKILL; `--transfers 10000` does it to payouts. A checker that knows only the rules
judges what is in the books of Stripe and in our rows at the end.

    plan, payout_plan     what happens in one scenario, from its seed; pure
    truth                 what was so: Stripe's books and our rows, as plain values
    rules, payout_rules   the checkers: truth in, violations out; pure
    bank                  Stripe's side in memory: checkouts, refunds, transfers, events
    mortal_stripe         the client of it in a process that may die, and what befalls its calls
    process               a node that can be killed at any step of its database and Stripe calls
    world                 the nodes of one worker, and the database's clock
    people                who there is, as rows
    stage                 deliveries, deaths and coming to rest, which all scenarios share
    scene, payout_scene   perform a plan
    reading               reads the truth at the end
    real_kills            the same rules over a real server that is killed
    servers               Postgres and Redis of a run
    campaign              many plans on all cores: progress, counts, the file of results
"""
