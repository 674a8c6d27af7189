"""A demonstration city: workshops, mechanics, customers and an admin, the same every time.

Its one job: make people that a demo, a load test or somebody curious can log in as, and say who
they are. May import `auth`, `config`, `core`, `database`, `errors`, `migrate` and `queries`. It is
one transaction: fails with ConfigError, StartError or Unavailable, and then nobody was added.

People are numbered, and everything about a person follows from the number: a larger city begins
with the people of a smaller one, and seeding again finds them by e-mail. Passwords follow from the
e-mail and the JWT secret, so no secret is in the code and the same ones are printed each time, as
long as that secret is the same. A password that was changed is left alone and not known here.
"""

import asyncio
import base64
import hmac
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final, TypedDict
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.auth import hash_password
from dispatch.config import Config
from dispatch.core.types import Role
from dispatch.database import Connection, unavailable_when_lost
from dispatch.errors import ConfigError, StartError
from dispatch.migrate import CONNECT_SECONDS, connect

DEFAULT_MECHANICS: Final = 16
DEFAULT_CUSTOMERS: Final = 12
MAX_PEOPLE: Final = 100_000

_QUERIES: Final = queries.load("seed")

_WORKSHOPS: Final = (
    ("Harbour Motors", "harbour-motors.example"),
    ("North Gate Garage", "north-gate-garage.example"),
    ("Old Mill Auto", "old-mill-auto.example"),
)
# Their numbers have no common divisor, so that 1,480 people pass before a whole name repeats.
# Split from text, since as literals (SIM905) they would be 77 lines.
_FIRST_NAMES: Final = """
    Maya Tomás Ingrid Kwame Leila Jonas Priya Mateo Astrid Yusuf Chiara Dmitri Amara Henrik Sofia
    Rashid Elodie Kenji Nadia Oscar Wanjiru Luca Freya Arjun Beatriz Emil Zainab Pieter Mei Andrés
    Hannah Tariq Noor Viktor Camille Samuel Ayşe Gustav Thandiwe Ruben
""".split()  # noqa: SIM905
_LAST_NAMES: Final = """
    Okafor Lindqvist Herrera Novák Haddad Fischer Nakamura Rossi Mensah Petrov Sharma Dubois Jansen
    Kaya Almeida Murphy Svensson Castillo Farouk Becker Tanaka Moretti Adeyemi Ivanova Patel Laurent
    DeVries Demir Carvalho Byrne Eriksson Morales Mansour Weber Chen Conti Mwangi
""".split()  # noqa: SIM905
_CUSTOMERS_FROM: Final = 740  # half-way, so that no customer of a small city has a mechanic's name


class Person(TypedDict):
    """Somebody who can log in, as printed.

    `user_id` logs in. `id` is the same, but for a workshop it is the organization's, and `name` is
    the organization's too. `workshop_id` is null for whoever belongs to none.
    """

    id: str
    user_id: str
    name: str
    email: str
    password: str
    workshop_id: str | None


class City(TypedDict):
    """Everybody that `dispatch seed-demo` prints."""

    workshops: list[Person]
    mechanics: list[Person]
    customers: list[Person]
    admin: Person


async def seed_demo(config: Config, mechanics: int | None, customers: int | None) -> City:
    """Make a city of so many mechanics and customers (None: 16 and 12) and return who is in it.

    Who is there already stays; mechanics become approved and available again. Three quarters of
    the mechanics are in the 3 workshops, the others independent. Everybody beyond the default city
    has one password, hashed once: ten thousand hashes would take minutes.

    Raises ConfigError for a number out of range, StartError when the database has no tables or an
    e-mail of the city belongs to somebody else, Unavailable when Postgres does not answer.
    """
    mechanics = DEFAULT_MECHANICS if mechanics is None else mechanics
    customers = DEFAULT_CUSTOMERS if customers is None else customers
    if not (0 <= mechanics <= MAX_PEOPLE and 0 <= customers <= MAX_PEOPLE):
        raise ConfigError([f"a city has 0 to {MAX_PEOPLE} mechanics and as many customers"])
    plan = _Plan.of(config.jwt_secret, mechanics, customers)
    connection = await connect(config.database_url)
    try:
        async with unavailable_when_lost(), connection.transaction():
            return await _settle(connection, plan)
    except asyncpg.UndefinedTableError:
        raise StartError("the database has no tables yet: run `dispatch migrate` first") from None
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


# --- who is in it: pure ---------------------------------------------------------------------------


class _Somebody(Struct, frozen=True):
    """A person of the plan; `workshop` is an index of _WORKSHOPS."""

    role: Role
    name: str
    email: str
    password: str
    workshop: int | None = None
    specialist: bool = False
    rating: float | None = None


class _Plan(Struct, frozen=True):
    """A whole city before anybody has an id."""

    workshops: list[_Somebody]
    mechanics: list[_Somebody]
    customers: list[_Somebody]
    admin: _Somebody

    @classmethod
    def of(cls, secret: str, mechanics: int, customers: int) -> "_Plan":
        admin = "admin@dispatch.example"
        return cls(
            [_workshop(secret, number) for number in range(len(_WORKSHOPS))],
            [_mechanic(secret, number) for number in range(mechanics)],
            [_customer(secret, number) for number in range(customers)],
            _Somebody(Role.ADMIN, "Demo Admin", admin, _password(secret, admin)),
        )

    def everybody(self) -> list[_Somebody]:
        return [*self.workshops, *self.mechanics, *self.customers, self.admin]


def _workshop(secret: str, number: int) -> _Somebody:
    name, domain = _WORKSHOPS[number]
    email = f"office@{domain}"
    return _Somebody(Role.WORKSHOP, name, email, _password(secret, email), number)


def _mechanic(secret: str, number: int) -> _Somebody:
    workshop = number % (len(_WORKSHOPS) + 1)  # one of them, or the fourth that is none
    independent = workshop == len(_WORKSHOPS)
    domain = "mechanics.example" if independent else _WORKSHOPS[workshop][1]
    crowd = number >= DEFAULT_MECHANICS
    name = _name(number)
    email = _email(name, domain, number if crowd else None)
    return _Somebody(
        Role.MECHANIC,
        name,
        email,
        _password(secret, "" if crowd else email),
        None if independent else workshop,
        specialist=number % 5 == 1,
        rating=None if number % 5 == 4 else 3.8 + number * 7 % 13 / 10,  # 3.8 to 5.0, or new
    )


def _customer(secret: str, number: int) -> _Somebody:
    crowd = number >= DEFAULT_CUSTOMERS
    name = _name(_CUSTOMERS_FROM + number)
    email = _email(name, "drivers.example", number if crowd else None)
    return _Somebody(Role.CUSTOMER, name, email, _password(secret, "" if crowd else email))


def _name(number: int) -> str:
    first = _FIRST_NAMES[number % len(_FIRST_NAMES)]
    return f"{first} {_LAST_NAMES[number % len(_LAST_NAMES)]}"


def _email(name: str, domain: str, number: int | None) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    suffix = "" if number is None else f".{number}"
    return f"{plain.lower().replace(' ', '.')}{suffix}@{domain}"


def _password(secret: str, email: str) -> str:
    """100 bits that only the secret gives; the empty e-mail is for everybody of the crowd."""
    digest = hmac.digest(secret.encode(), f"seed-demo password: {email}".encode(), "sha256")
    return base64.b32encode(digest).decode().lower()[:20]


# --- settling them --------------------------------------------------------------------------------


async def _settle(connection: Connection, plan: _Plan) -> City:
    await connection.execute(_QUERIES["take_turn"])
    ids = await _users(connection, plan.everybody())
    workshop_ids = [
        await connection.fetchval(
            _QUERIES["add_workshop"], ids[workshop.email], workshop.name, workshop.email
        )
        for workshop in plan.workshops
    ]
    await connection.execute(
        _QUERIES["add_mechanics"],
        [ids[mechanic.email] for mechanic in plan.mechanics],
        [_workshop_id(mechanic, workshop_ids) for mechanic in plan.mechanics],
        [mechanic.specialist for mechanic in plan.mechanics],
        [mechanic.rating for mechanic in plan.mechanics],
    )
    await connection.execute(
        _QUERIES["add_customers"], [ids[customer.email] for customer in plan.customers]
    )

    def printed(somebody: _Somebody) -> Person:
        return _printed(somebody, ids[somebody.email], _workshop_id(somebody, workshop_ids))

    return City(
        workshops=[printed(workshop) for workshop in plan.workshops],
        mechanics=[printed(mechanic) for mechanic in plan.mechanics],
        customers=[printed(customer) for customer in plan.customers],
        admin=printed(plan.admin),
    )


async def _users(connection: Connection, people: Sequence[_Somebody]) -> Mapping[str, UUID]:
    """The id of everybody by e-mail; who is missing is added. Raises StartError."""
    present = await connection.fetch(_QUERIES["find_users"], [person.email for person in people])
    roles = {row["email"]: row["role"] for row in present}
    for person in people:
        if roles.get(person.email, person.role) != person.role:
            raise StartError(f"{person.email} belongs to a user who is no {person.role}")
    missing = [person for person in people if person.email not in roles]
    passwords = list({person.password for person in missing})
    hashes = await asyncio.gather(*(hash_password(password) for password in passwords))
    hash_of = dict(zip(passwords, hashes, strict=True))
    added = await connection.fetch(
        _QUERIES["add_users"],
        [person.name for person in missing],
        [person.email for person in missing],
        [hash_of[person.password] for person in missing],
        [person.role for person in missing],
    )
    return {row["email"]: row["id"] for row in (*present, *added)}


def _workshop_id(somebody: _Somebody, workshop_ids: Sequence[UUID]) -> UUID | None:
    return None if somebody.workshop is None else workshop_ids[somebody.workshop]


def _printed(somebody: _Somebody, user_id: UUID, workshop_id: UUID | None) -> Person:
    is_workshop = somebody.role is Role.WORKSHOP
    return Person(
        id=str(workshop_id if is_workshop else user_id),
        user_id=str(user_id),
        name=somebody.name,
        email=somebody.email,
        password=somebody.password,
        workshop_id=None if workshop_id is None else str(workshop_id),
    )
