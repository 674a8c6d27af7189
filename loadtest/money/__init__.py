"""Money under faults: payments, refunds and payouts in every order, with kills at every step.

`python -m loadtest.money --permutations 10000` runs seeded scenarios against real Postgres, with
several nodes in this process that die at a chosen step; `--real-kills 200` does it to a server's
processes with SIGKILL; `--transfers 10000` does it to payouts. A checker that knows only the rules
judges what is in the books of Stripe and in our rows at the end.

    plan        what happens in one scenario, from its seed; pure
    truth       what was so: Stripe's books and our rows, as plain values
    rules       the checker: truth in, violations out; pure
    bank        Stripe's side in memory: checkouts, refunds, transfers, events
    process     a node that can be killed at any step of its database and Stripe calls
    scene       performs a plan, and reads the truth at the end
    campaign    many plans on all cores: progress, counts, the file of results
"""
