"""People of scenarios, as rows: who has signed up, and whom an admin has approved.

One job: the statements that make them. Imports nothing of ours.
"""

from typing import Final
from uuid import UUID, uuid4

import asyncpg

_CUSTOMER: Final = """
WITH u AS (INSERT INTO users (email, name, role) VALUES ($1, 'Ann', 'customer') RETURNING id)
INSERT INTO customers (id) SELECT id FROM u RETURNING id
"""
_MECHANIC: Final = """
WITH u AS (INSERT INTO users (email, name, role) VALUES ($1, 'Max', 'mechanic') RETURNING id)
INSERT INTO mechanics (id, application_status, account_type, workshop_id, stripe_connect_account_id,
                       stripe_onboarding_completed, stripe_payouts_enabled)
SELECT id, 'approved', CASE WHEN $2::uuid IS NULL THEN 'independent' ELSE 'workshop' END, $2, $3,
       $3::text IS NOT NULL, $3::text IS NOT NULL
  FROM u RETURNING id
"""
_WORKSHOP: Final = """
INSERT INTO organizations (name, email, status, stripe_connect_account_id,
                           stripe_onboarding_completed, stripe_payouts_enabled)
VALUES ('Corner', 'c@shops.example', 'active', $1, true, true) RETURNING id
"""
_ADMIN: Final = """
INSERT INTO users (email, name, role) VALUES ($1, 'Ada', 'admin') RETURNING id
"""


async def customer(db: asyncpg.Pool) -> UUID:
    """A customer."""
    made: UUID = await db.fetchval(_CUSTOMER, _email())
    return made


async def mechanic(
    db: asyncpg.Pool, workshop_id: UUID | None = None, account: str | None = None
) -> UUID:
    """An approved mechanic, independent or of a workshop, who may have an account at Stripe."""
    made: UUID = await db.fetchval(_MECHANIC, _email(), workshop_id, account)
    return made


async def workshop(db: asyncpg.Pool, account: str) -> UUID:
    """An active workshop with an account at Stripe."""
    made: UUID = await db.fetchval(_WORKSHOP, account)
    return made


async def admin(db: asyncpg.Pool) -> UUID:
    """An operator."""
    made: UUID = await db.fetchval(_ADMIN, _email())
    return made


def _email() -> str:
    return f"{uuid4()}@people.example"
