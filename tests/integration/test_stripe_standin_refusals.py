"""What the stand-in for Stripe refuses: by name, in Stripe's shape, and without a trace."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from dispatch.stripe_standin import create_app
from dispatch.stripe_standin.forms import CheckoutParams
from dispatch.stripe_standin.params import ApiError, parse_form, read
from tests.integration.stripe_servers import CHECKOUT, StandInClient, stand_in

PRICE = "line_items[0][price_data]"
QUANTITY = "line_items[0][quantity]"
LINK = (
    b"account=acct_none&type=account_onboarding"
    b"&return_url=http://localhost/a&refresh_url=http://localhost/b"
)
TRANSFER = b"amount=5&currency=usd&destination=acct_none"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unchanged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StandInClient]:
    """One stand-in for all tests that it refuses something; none of them may leave a trace."""
    folder = tmp_path_factory.mktemp("unchanged")
    async with stand_in(folder, "http://127.0.0.1:1/webhook") as client:
        yield client
        for kind in ("checkout/sessions", "refunds", "events", "accounts", "transfers"):
            assert (await client.call("GET", f"/v1/{kind}"))[1]["data"] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"colour": "red"}, "parameter_unknown", "colour"),
        ({f"{PRICE}[colour]": "red"}, "parameter_unknown", f"{PRICE}[colour]"),
        ({"mode": "setup"}, None, "mode"),
        ({QUANTITY: "some"}, "parameter_invalid_integer", QUANTITY),
        ({QUANTITY: "0"}, "parameter_invalid_integer", QUANTITY),
        ({f"{PRICE}[unit_amount]": "-1"}, "parameter_invalid_integer", f"{PRICE}[unit_amount]"),
        ({f"{PRICE}[unit_amount]": "9" * 5000}, None, f"{PRICE}[unit_amount]"),
        ({f"{PRICE}[unit_amount]": "49"}, "amount_too_small", "line_items"),
        ({f"{PRICE}[currency]": "dollars"}, None, f"{PRICE}[currency]"),
        ({"line_items[2][quantity]": "1"}, None, "line_items"),
        ({"line_items": "one"}, None, "line_items"),
        ({"success_url": "/done"}, "url_invalid", "success_url"),
        ({"cancel_url": "javascript:alert(1)"}, "url_invalid", "cancel_url"),
        ({"cancel_url": "http://a\r\nX-B: c/"}, "url_invalid", "cancel_url"),
        ({"customer_email": "ann"}, "email_invalid", "customer_email"),
        ({"expires_at": "1"}, None, "expires_at"),
        ({"expires_at": "9" * 30}, None, "expires_at"),
        ({"metadata[plan]": "x" * 501}, None, "metadata"),
        ({"metadata[a][b][c]": "x"}, None, "metadata"),
        ({"a[b][c][d][e][f][g]": "x"}, None, "a"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_refused_by_name(
    unchanged: StandInClient, changed: dict[str, str], code: str | None, param: str
) -> None:
    status, answer, _ = await unchanged.call("POST", "/v1/checkout/sessions", CHECKOUT | changed)

    assert status == 400
    error = answer["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert code is None or error["code"] == code


@pytest.mark.asyncio(loop_scope="module")
async def test_a_missing_parameter_is_named(unchanged: StandInClient) -> None:
    without = {name: value for name, value in CHECKOUT.items() if name != "success_url"}

    status, answer, _ = await unchanged.call("POST", "/v1/checkout/sessions", without)

    assert (status, answer["error"]["code"]) == (400, "parameter_missing")
    assert answer["error"]["param"] == "success_url"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/v1/refunds", b"", 400),
        ("POST", "/v1/refunds", b"payment_intent=pi_none", 404),
        ("POST", "/v1/refunds", b"charge=ch_none", 404),
        ("POST", "/v1/refunds", b"charge=ch_none&payment_intent=pi_none", 400),
        ("POST", "/v1/refunds", b"\xff\xfe%ff=1", 400),
        ("POST", "/v1/refunds", b'{"charge": "ch_none"}', 400),
        ("POST", "/v1/refunds", b"a=1&a[b]=2", 400),
        ("POST", "/v1/refunds", b"a[b]=2&a=1", 400),
        ("POST", "/v1/refunds", b"x=1&" * 1000, 400),
        ("POST", "/v1/refunds", b"charge=" + b"x" * 65536, 413),
        ("GET", "/v1/refunds/re_none", b"", 404),
        ("GET", "/v1/checkout/sessions/cs_none", b"", 404),
        ("GET", "/v1/checkout/sessions?limit=0", b"", 400),
        ("GET", "/v1/checkout/sessions?limit=many", b"", 400),
        ("GET", "/v1/payment_intents/%00%ff", b"", 404),
        ("GET", "/v1/charges/ch_none", b"", 404),
        ("POST", "/v1/accounts", b"", 400),
        ("POST", "/v1/accounts", b"type=standard", 400),
        ("POST", "/v1/accounts", b"type=express&country=usa", 400),
        ("POST", "/v1/accounts", b"type=express&email=ann", 400),
        ("POST", "/v1/accounts", b"type=express&capabilities[card_payments][requested]=true", 400),
        ("GET", "/v1/accounts/acct_none", b"", 403),
        ("POST", "/v1/account_links", LINK, 400),
        ("POST", "/v1/account_links", LINK.replace(b"http:", b"data:"), 400),
        ("POST", "/v1/transfers", TRANSFER, 400),
        ("POST", "/v1/transfers", TRANSFER.replace(b"=5", b"=-5"), 400),
        ("POST", "/v1/transfers", TRANSFER.replace(b"=5", b"=5.5"), 400),
        ("POST", "/v1/transfers", TRANSFER.replace(b"usd", b"dollars"), 400),
        ("POST", "/v1/transfers", TRANSFER + b"&source_transaction=ch_1", 400),
        ("POST", "/v1/transfers/tr_none", b"metadata[a]=b", 404),
        ("POST", "/v1/transfers/tr_none/reversals", b"amount=1", 404),
        ("GET", "/v1/transfers/tr_none/reversals", b"", 404),
        ("GET", "/v1/transfers/tr_none/reversals/trr_none", b"", 404),
        ("GET", "/v1/transfers?starting_after=tr_none", b"", 400),
        ("GET", "/v1/transfers?created[gte]=yesterday", b"", 400),
        ("GET", f"/v1/transfers?created[gte]={9**30}", b"", 400),
        ("GET", "/v1/events?type=a&types[]=b", b"", 400),
        ("GET", "/v1/events?types[]=[", b"", 400),
        ("GET", "/v1/events?types=a", b"", 400),
        ("GET", "/v1/events?" + "&".join(["types[]=a"] * 21), b"", 400),
        ("GET", "/v1/events/evt_none", b"", 404),
        ("GET", "/v1/customers", b"", 404),
        ("DELETE", "/v1/refunds", b"", 404),
        ("PATCH", "/v1/refunds", b"", 404),
    ],
)
async def test_what_cannot_be_done_has_stripes_error_shape(
    unchanged: StandInClient, method: str, path: str, body: bytes, expected: int
) -> None:
    status, answer, headers = await unchanged.call(method, path, body)

    assert status == expected
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
    assert headers["request-id"].startswith("req_")


@given(st.binary(max_size=200) | st.text("ab[]=&%0", max_size=60).map(str.encode))
def test_any_bytes_are_refused_and_never_a_fault(raw: bytes) -> None:
    """Nothing but ApiError comes out, and no form without a price is a checkout."""
    with pytest.raises(ApiError) as refused:
        read(parse_form(raw), CheckoutParams)

    assert refused.value.status == 400


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("secret", [None, "", "sk_test_other", "sk_live_" + "x" * 24])
async def test_without_the_key_nothing_is_answered(
    unchanged: StandInClient, secret: str | None
) -> None:
    status, answer, _ = await unchanged.call(
        "POST", "/v1/checkout/sessions", CHECKOUT, secret=secret
    )

    assert (status, answer["error"]["type"]) == (401, "invalid_request_error")
    assert "x" * 24 not in str(answer)


@pytest.mark.parametrize(
    ("key", "webhook_secret"), [("sk_live_x", "whsec_x"), ("", "whsec_x"), ("sk_test_x", "")]
)
def test_it_is_not_made_with_a_live_key_or_without_secrets(
    tmp_path: Path, key: str, webhook_secret: str
) -> None:
    with pytest.raises(ValueError, match=r"STRIPE_\w+"):
        create_app(key, webhook_secret, "http://127.0.0.1:1/webhook", tmp_path)

    assert list(tmp_path.iterdir()) == []
