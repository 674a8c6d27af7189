"""The bank of the load test answers as the stand-in for Stripe does, whatever it is asked."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from dispatch.stripe_client import StripeClient, StripeFailed
from loadtest.money.bank import Bank
from tests.integration.stripe_servers import Receiver, StandInClient, serving, stand_in
from tests.support import STRIPE_SECRET_KEY

Op = Callable[[], Awaitable[Any]]

PAYMENTS = [UUID(int=1), UUID(int=2)]
PAYOUTS = [UUID(int=11), UUID(int=12)]
REVERSALS = [UUID(int=21), UUID(int=22)]
CENTS = 10_000
SAVINGS = 900_000  # what the platform has beside: the bank sends whatever it is asked to
STEPS = 40
QUESTIONS = (
    *("refund", "refunds", "hand", "fail", "transfer", "transfer_of"),
    *("reverse", "reversal_of", "disable", "enable", "forget"),
)


class Both:
    """The same question to the real client at the stand-in, and to the bank; ids are compared by
    the order in which they came up."""

    def __init__(self, stripe: StripeClient, standing: StandInClient) -> None:
        self.stripe = stripe
        self.standing = standing
        self.bank = Bank("x", lambda: 0.0)
        self.ids: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.pages: dict[UUID, str] = {}
        self.intents: dict[UUID, tuple[str, str]] = {}
        self.transfers: dict[UUID, tuple[str, str]] = {}
        self.accounts: tuple[str, str] = ("", "")

    async def open(self) -> None:
        """An account that takes transfers, and two payments."""
        account = await self.stripe.create_account(payee="x", email="x@y.example", metadata={})
        await self.standing.control("POST", f"accounts/{account.id}")
        self.accounts = (account.id, "acct_x")
        self.bank.accounts["acct_x"] = True
        for payment_id, cents in ((UUID(int=3), SAVINGS), *((each, CENTS) for each in PAYMENTS)):
            asked: dict[str, Any] = {
                "payment_id": payment_id,
                "plan_code": "video15",
                "plan_name": "Video",
                "amount_cents": cents,
                "currency": "eur",
                "customer_email": "ann@x.example",
                "metadata": {},
                "success_url": "http://x.example/s",
                "cancel_url": "http://x.example/c",
                "expires_in_seconds": 3600,
            }
            theirs = await self.stripe.create_checkout(**asked)
            sale = self.bank.sales[self.bank.create_checkout(**asked).id]
            await self.standing.press(theirs.url, "pay")
            self.bank.pay(sale)
            shown = await self.stripe.checkout_session(theirs.id)
            assert self.same((shown, self.bank.checkout_session(sale.id)))
            assert shown.payment_intent is not None
            assert sale.payment_intent is not None
            self.intents[payment_id] = (shown.payment_intent, sale.payment_intent)

    async def step(self, dice: random.Random) -> str:
        """One question, drawn; what it was."""
        payment_id, payout_id = dice.choice(PAYMENTS), dice.choice(PAYOUTS)
        intent = self.intents[payment_id]
        name = dice.choice(QUESTIONS)
        match name:
            case "refund":
                asked: dict[str, Any] = {"payment_id": payment_id, "reason": dice.choice("xy")}
                await self.compare("refund", asked, payment_intent=intent)
            case "refunds":
                await self.compare("refunds", {}, payment_intent=intent)
            case "hand":
                await self.give_back(payment_id, dice.choice((100, 2500)))
            case "fail":
                await self.fail_refund(dice)
            case "transfer":
                asked = {"payout_id": payout_id, "amount_cents": 1500, "currency": "eur"}
                made = await self.compare(
                    "transfer", asked | {"metadata": {}}, destination=self.accounts
                )
                if made is not None:
                    self.transfers[payout_id] = (made[0].id, made[1].id)
            case "transfer_of":
                await self.compare("transfer_of", {"payout_id": payout_id})
            case "reverse" if payout_id in self.transfers:
                asked = {"reversal_id": dice.choice(REVERSALS), "amount_cents": 700}
                await self.compare("reverse", asked, transfer_id=self.transfers[payout_id])
            case "reversal_of" if payout_id in self.transfers:
                asked = {"reversal_id": dice.choice(REVERSALS)}
                await self.compare("reversal_of", asked, transfer_id=self.transfers[payout_id])
            case "disable" | "enable":
                wish = {"disabled_reason": "listed"} if name == "disable" else {}
                await self.standing.control("POST", f"accounts/{self.accounts[0]}", **wish)
                self.bank.accounts[self.accounts[1]] = name == "enable"
            case "forget":
                await self.standing.control("DELETE", "keys")
                self.bank.forget_keys()
        return name

    async def give_back(self, payment_id: UUID, cents: int) -> None:
        """By hand, where so much is left."""
        theirs, ours = self.intents[payment_id]
        if sum(r.cents for r in self.bank.returns if r.payment_intent == ours) + cents > CENTS:
            return
        await self.standing.control("POST", "refunds", payment_intent=theirs, amount=cents)
        sale = next(s for s in self.bank.sales.values() if s.payment_intent == ours)
        self.bank.refund_by_hand(sale, cents)

    async def fail_refund(self, dice: random.Random) -> None:
        """One that was believed to be there did not go through."""
        made = [r for r in self.bank.returns if r.status == "succeeded"]
        if not made:
            return
        chosen = dice.choice(made)
        [theirs] = [i[0] for i in self.intents.values() if i[1] == chosen.payment_intent]
        ours = self.bank.refunds(chosen.payment_intent)
        nth = [refund.id for refund in ours].index(chosen.id)
        refund_id = (await self.stripe.refunds(theirs))[nth].id
        why = "lost_or_stolen_card"
        await self.standing.control("POST", f"refunds/{refund_id}", failure_reason=why)
        self.bank.end_refund(chosen, fails=True)

    async def compare(
        self, name: str, asked: dict[str, Any], **each: tuple[str, str]
    ) -> tuple[Any, Any] | None:
        """Both answers, which must be the same; None where both refused."""
        theirs, ours = ({key: ids[side] for key, ids in each.items()} for side in (0, 1))
        answers: list[Any] = []
        try:
            answers.append(await getattr(self.stripe, name)(**asked, **theirs))
        except StripeFailed as refused:
            answers.append(refused)
        try:
            answers.append(getattr(self.bank, name)(**asked, **ours))
        except StripeFailed as refused:
            answers.append(refused)
        assert self.same((answers[0], answers[1])), (name, asked, answers)
        return None if isinstance(answers[0], StripeFailed | None) else (answers[0], answers[1])

    def same(self, answers: tuple[Any, Any]) -> bool:
        """Whether they say the same."""
        return bool(self.plain(answers[0], 0) == self.plain(answers[1], 1))

    def plain(self, answer: Any, side: int) -> Any:
        """The answer with the number of each id in place of it."""
        if isinstance(answer, StripeFailed):
            return "refused", answer.stripe_code
        return self.numbered(msgspec.to_builtins(answer), side)

    def numbered(self, value: Any, side: int) -> Any:
        match value:
            case dict():
                drop = ("metadata", "client_reference_id")
                return {k: self.numbered(v, side) for k, v in value.items() if k not in drop}
            case list():
                # From the oldest, as ids come up in that order.
                return [self.numbered(each, side) for each in reversed(value)]
            case str() if value.startswith(("cs_", "pi_", "re_", "tr_", "trr_", "acct_")):
                return self.ids[side].setdefault(value, len(self.ids[side]))
            case _:
                return value


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with serving(Receiver().app()) as url, stand_in(tmp_path, f"{url}/webhook") as standing:
        stripe = StripeClient(
            STRIPE_SECRET_KEY, api_base=standing.url, public_url="http://x.example"
        )
        both = Both(stripe, standing)
        await both.open()
        yield both
        await stripe.close()


@pytest.mark.parametrize("seed", range(8))
async def test_the_bank_answers_as_the_stand_in_does(both: Both, seed: int) -> None:
    dice = random.Random(seed)

    asked = [await both.step(dice) for _ in range(STEPS)]

    assert len(set(asked)) > 6
