"""Who lives in the city that `dispatch seed-demo` made, as it printed them.

Pure data, imports nothing of ours. `City.parse` raises `msgspec.ValidationError` or
`msgspec.DecodeError` when the text is not that JSON.
"""

from typing import Self

import msgspec


class Member(msgspec.Struct, frozen=True):
    """Somebody who can log in. A workshop's `id` is its organization's, `user_id` its member's."""

    id: str
    name: str
    email: str
    password: str
    workshop_id: str | None = None
    user_id: str | None = None


class City(msgspec.Struct, frozen=True):
    """Everybody there is, in the order in which seed-demo prints them."""

    workshops: list[Member]
    mechanics: list[Member]
    customers: list[Member]
    admin: Member

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        return msgspec.json.decode(text, type=cls)

    def workshop_names(self) -> dict[str, str]:
        return {workshop.id: workshop.name for workshop in self.workshops}
