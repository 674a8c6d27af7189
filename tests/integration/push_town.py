"""A push service, our side of it, and devices: what the tests of notifications share."""

from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import pytest

from dispatch import push
from dispatch.database import Pool
from dispatch.push import SubscriptionForm
from dispatch.push_client import WebPush
from tests.integration import push_service
from tests.integration.push_service import SUBJECT, Browser, PushService

CAPACITY = 1


@pytest.fixture
async def service() -> AsyncIterator[PushService]:
    """It must have had no reason to complain."""
    async with push_service.push_service() as service:
        yield service
    assert service.complaints == []


@pytest.fixture
async def web_push(service: PushService) -> AsyncIterator[WebPush]:
    web_push = WebPush(service.private_key, SUBJECT, (service.url,))
    yield web_push
    await web_push.close()


async def subscribe(
    pool: Pool, service: PushService, web_push: WebPush, mechanic_id: UUID
) -> Browser:
    browser = service.browser()
    form = msgspec.convert(browser.form(), SubscriptionForm)
    await push.subscribe(pool, web_push.guard, mechanic_id, form)
    return browser
