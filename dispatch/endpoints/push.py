"""The devices on which a mechanic is told of offers while she is not connected (N3)."""

import time
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from dispatch import push
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.errors import NotConfigured, RateLimited
from dispatch.exchange import body, ok, path_id
from dispatch.node import Node
from dispatch.push_client import WebPush
from dispatch.ratelimit import KeyedRate

# Each may look up a name that she chose.
SUBSCRIPTIONS_PER_MINUTE: Final = 12


class Push(Area):
    """Subscriptions to web push."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._subscribing: set[UUID] = set()
        self._rate = KeyedRate(SUBSCRIPTIONS_PER_MINUTE / 60, burst=SUBSCRIPTIONS_PER_MINUTE)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/push/subscriptions", self.subscriptions),
            ("POST", "/api/push/subscriptions", self.subscribe),
            ("DELETE", "/api/push/subscriptions/{id}", self.unsubscribe),
        ]

    async def subscriptions(self, request: Request) -> Response:
        """Her devices, and the key that a browser needs to subscribe."""
        caller = await self.caller(request, Role.MECHANIC)
        key = self._web_push().application_server_key
        devices = await push.subscriptions(self.node.pool, caller.user_id)
        return ok({"application_server_key": key, "subscriptions": devices})

    async def subscribe(self, request: Request) -> Response:
        """Keeps a device: 201 for a new one, 200 for one that is hers already."""
        caller = await self.caller(request, Role.MECHANIC)
        guard = self._web_push().guard
        form = await body(request, push.SubscriptionForm)
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

    async def unsubscribe(self, request: Request) -> Response:
        """Forgets one of her devices."""
        caller = await self.caller(request, Role.MECHANIC)
        self._web_push()
        await push.unsubscribe(self.node.pool, caller.user_id, path_id(request))
        self.node.devices_changed(caller.user_id)
        return ok()

    def _web_push(self) -> WebPush:
        if self.node.web_push is None:
            raise NotConfigured("web push is not configured here")
        return self.node.web_push
