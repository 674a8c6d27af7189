"""Connecting: how one says who one is, and what one is then shown."""

from tests.acceptance.actors import City, Device, Person


async def dial(city: City, person: Person | None = None) -> Device:
    """A connection without a token in its handshake."""
    return await Device.dial(city.town.server.ws_url, person.name if person else "nobody", None)


async def test_a_customer_is_shown_requests_sessions_and_favourites(city: City) -> None:
    ann = await city.customer()
    booking = await ann.book()
    now = await booking.status(mechanics_notified=0)

    device = await ann.connect()

    assert (device.welcome["user_id"], device.welcome["role"]) == (ann.id, "customer")
    assert device.welcome["heartbeat_seconds"] == 20
    (request,), (session,) = device.snapshot["requests"], device.snapshot["sessions"]
    assert request["request_id"] == booking.request_id
    assert (request["version"], request["stage"]) == (now["version"], "open")
    assert (session["session_id"], session["status"]) == (booking.session_id, "pending")
    assert device.snapshot["favorites"] == []


async def test_a_mechanic_is_shown_offers_and_her_session(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    mechanic = await city.mechanic(online=False)
    booking = await ann.book()

    phone = await mechanic.connect()
    (card,) = phone.snapshot["offers"]
    won = await mechanic.accept(card)
    await bob.book()
    tablet = await mechanic.connect()

    assert (phone.welcome["user_id"], phone.welcome["role"]) == (mechanic.id, "mechanic")
    assert (phone.snapshot["available"], phone.snapshot["more_offers"]) == (True, False)
    assert (card["request_id"], won["type"]) == (booking.request_id, "offer.won")
    assert tablet.snapshot["offers"] == []
    (session,) = tablet.snapshot["sessions"]
    assert (session["session_id"], session["status"]) == (booking.session_id, "accepted")
    assert phone.welcome["connection_id"] != tablet.welcome["connection_id"]


async def test_a_workshop_is_shown_its_mechanics(city: City) -> None:
    shop = await city.workshop(0)

    device = await shop.connect()

    assert device.welcome["role"] == "workshop"
    own = {m["user_id"] for m in city.town.mechanics if m["workshop_id"] == shop.workshop_id}
    assert {mechanic["mechanic_id"] for mechanic in device.snapshot["mechanics"]} == own
    assert device.snapshot["sessions"] == []


async def test_an_admin_is_shown_open_requests_and_nodes(city: City) -> None:
    ann = await city.customer()
    booking = await ann.book()
    admin = await city.admin()

    device = await admin.connect()

    assert device.welcome["role"] == "admin"
    assert booking.request_id in [r["request_id"] for r in device.snapshot["requests"]]
    nodes = [node["node_id"] for node in device.snapshot["nodes"]]
    assert nodes == [device.welcome["node_id"]]


async def test_a_token_in_the_first_frame_is_as_good_as_one_in_the_handshake(city: City) -> None:
    mechanic = await city.mechanic(online=False)
    device = await dial(city, mechanic)

    hello = await device.send("hello", token=mechanic.token, device="phone", client="tests")
    early = await device.send("ping")
    pong = await device.expect("pong")

    assert [frame["type"] for frame in device.frames] == ["welcome", "pong"]
    assert (device.welcome["user_id"], device.welcome["re"]) == (mechanic.id, hello)
    assert pong["re"] == early
    await device.close()


async def test_a_token_that_is_none_is_refused_in_either_place(city: City) -> None:
    first_frame = await dial(city)
    await first_frame.send("hello", token="not.a.token")
    without = await dial(city)
    await without.send("hello")
    header = await Device.dial(city.town.server.ws_url, "nobody", "not.a.token")

    assert [await device.closed() for device in (first_frame, without, header)] == [4401] * 3
    assert first_frame.frames == without.frames == header.frames == []


async def test_refreshing_takes_ones_own_token_only(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    body = {"email": ann.email, "password": password_of(city, ann)}
    fresh = (await city.call("POST", "/api/auth/login", body))["token"]

    refreshed = await ann.device.ask("token.refresh", token=fresh)
    await bob.device.send("token.refresh", token=fresh)

    assert refreshed["type"] == "ok"
    assert await bob.device.closed() == 4401
    await ann.device.fence()


def password_of(city: City, person: Person) -> str:
    """As the seeded town gave it."""
    rows = city.town.people["customers"]
    return str(next(row["password"] for row in rows if row["user_id"] == person.id))


async def test_a_logged_out_user_is_disconnected(city: City) -> None:
    account = {"name": "Zoe", "email": "zoe@example.com", "password": "a long enough password"}
    signed_up = await city.call("POST", "/api/customer/signup", account)
    assert signed_up.status < 300, signed_up
    login = {name: account[name] for name in ("email", "password")}
    logged_in = await city.call("POST", "/api/auth/login", login)
    device = await Device.dial(city.town.server.ws_url, "Zoe", logged_in["token"])
    await device.expect("welcome", user_id=logged_in["user_id"], role="customer")

    out = await city.call("POST", "/api/auth/logout", token=logged_in["token"])

    assert out.status == 200
    assert await device.closed() == 4401
    again = await Device.dial(city.town.server.ws_url, "Zoe", logged_in["token"])
    assert await again.closed() == 4401


async def test_ping_is_answered_with_the_time(city: City) -> None:
    ann = await city.customer()

    pong = await ann.device.ask("ping")

    assert pong["type"] == "pong"
    assert pong["server_time"] >= ann.device.welcome["server_time"]


async def test_a_mechanic_who_withdraws_loses_her_cards_until_she_is_back(city: City) -> None:
    ann = await city.customer()
    mechanic, other = await city.mechanics(2)
    booking = await ann.book()
    card = await mechanic.offered(booking)

    gone = await mechanic.device.ask("availability.set", available=False)
    revoked = await mechanic.device.expect("offer.revoked", offer_id=card["offer_id"])
    away = await mechanic.connect()
    refused = await mechanic.accept(card)
    back = await away.ask("availability.set", available=True)
    again = await mechanic.offered(booking)

    assert (gone["type"], revoked["reason"], back["type"]) == ("ok", "withdrawn", "ok")
    assert (away.snapshot["available"], away.snapshot["offers"]) == (False, [])
    assert (refused["type"], refused["reason"]) == ("offer.lost", "unavailable")
    assert again["offer_id"] == card["offer_id"]
    assert len(other.device.cards(booking.request_id)) == 1
    await mechanic.wins(booking)
