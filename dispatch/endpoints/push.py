"""The devices on which a mechanic is told of offers while she is not connected (N3)."""

import time
from typing import Final
from uuid import UUID

from msgspec import Struct
from starlette.responses import Response

from dispatch import push
from dispatch.endpoints.area import MECHANIC, Area, Asked, Path
from dispatch.errors import NotConfigured, RateLimited
from dispatch.exchange import ok
from dispatch.node import Node
from dispatch.push_client import WebPush
from dispatch.ratelimit import KeyedRate

# Each may look up a name that she chose.
SUBSCRIPTIONS_PER_MINUTE: Final = 12


class Devices(Struct, frozen=True):
    """`GET /api/push/subscriptions`; the key is what a browser is to subscribe with."""

    application_server_key: str
    subscriptions: list[push.Subscription]


class Push(Area):
    """Subscriptions to web push."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._subscribing: set[UUID] = set()
        self._rate = KeyedRate(SUBSCRIPTIONS_PER_MINUTE / 60, burst=SUBSCRIPTIONS_PER_MINUTE)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/push/subscriptions",
                self.subscriptions,
                roles=MECHANIC,
                answer=Devices,
                errors=("not_configured",),
            ),
            Path(
                "POST",
                "/api/push/subscriptions",
                self.subscribe,
                roles=MECHANIC,
                body=push.SubscriptionForm,
                answer=push.Subscription,
                status=201,
                also=(200,),
                errors=("not_configured", "not_found", "rate_limited"),
            ),
            Path(
                "DELETE",
                "/api/push/subscriptions/{id}",
                self.unsubscribe,
                roles=MECHANIC,
                errors=("not_configured",),
            ),
        ]

    async def subscriptions(self, asked: Asked) -> Devices:
        """Her devices, and the key that a browser needs to subscribe."""
        key = self._web_push().application_server_key
        return Devices(key, await push.subscriptions(self.node.pool, asked.caller.user_id))

    async def subscribe(self, asked: Asked) -> Response:
        """Keeps a device: 201 for a new one, 200 for one that is hers already."""
        caller = asked.caller
        guard = self._web_push().guard
        form: push.SubscriptionForm = asked.body
        busy = caller.user_id in self._subscribing
        if busy or not self._rate.take(caller.user_id, time.monotonic()):
            raise RateLimited("too many subscriptions; try again in a minute")
        self._subscribing.add(caller.user_id)
        try:
            device, is_new = await push.subscribe(self.node.pool, guard, caller.user_id, form)
        finally:
            self._subscribing.discard(caller.user_id)
        self.node.devices_changed(caller.user_id)
        return ok(device, status=201 if is_new else 200)

    async def unsubscribe(self, asked: Asked) -> None:
        """Forgets one of her devices."""
        user_id = asked.caller.user_id
        self._web_push()
        await push.unsubscribe(self.node.pool, user_id, asked.id)
        self.node.devices_changed(user_id)

    def _web_push(self) -> WebPush:
        if self.node.web_push is None:
            raise NotConfigured("web push is not configured here")
        return self.node.web_push
