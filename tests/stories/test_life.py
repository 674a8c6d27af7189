"""The life of a session goes as docs/life.md tells it, and the rows say the same."""

from dispatch.core.replay import replay
from dispatch.database import close_pool, open_pool
from dispatch.replay import record_of
from tests.stories.document import LIFE_DOCUMENT, life_document, transcripts
from tests.stories.life import lived


async def test_a_session_lives_as_the_page_tells(database_url: str, redis_url: str) -> None:
    (page,) = transcripts(LIFE_DOCUMENT.read_text())

    lines = await lived(database_url, redis_url)

    assert lines == page
    pool = await open_pool(database_url, size=1)
    try:
        row = await pool.fetchrow(
            "SELECT * FROM session_requests WHERE status = 'completed' AND mechanic_id IS NOT NULL"
        )
        assert row is not None
        replayed = replay(await record_of(pool, row["id"]))
        messages = await pool.fetch("SELECT seq, sent_at FROM chat_messages ORDER BY seq")
        invite = await pool.fetchrow("SELECT used_by, used_at FROM workshop_invites")
    finally:
        await close_pool(pool)
    assert replayed.differences == ()
    assert [message["seq"] for message in messages] == list(range(1, 21))
    sent = [message["sent_at"] for message in messages]
    assert sent == sorted(sent)
    assert invite is not None
    assert invite["used_by"] == row["mechanic_id"]


def test_the_page_is_what_is_printed() -> None:
    page = LIFE_DOCUMENT.read_text()

    assert page == life_document(*transcripts(page))
