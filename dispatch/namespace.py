"""Which cluster this is, so that several can share one Redis.

One job: give the short id that every key and channel in Redis begins with. Imports `database` only.
"""

from dispatch.database import Pool, unavailable_when_lost

_WHO = """
SELECT c.id, d.oid FROM cluster c, pg_database d WHERE d.datname = current_database()
"""


async def namespace(pool: Pool) -> str:
    """The id of this database as 25 characters or less, the same on every node and at every start.

    The row of `cluster` alone would do, were it not copied by CREATE DATABASE … TEMPLATE; the oid
    tells the copies apart. Any user who may read the schema may ask. Raises Unavailable.
    """
    async with unavailable_when_lost():
        row = await pool.fetchrow(_WHO)
    assert row is not None, "the schema has one row in cluster"
    return f"{row['id'].hex[:14]}{row['oid']:x}"
