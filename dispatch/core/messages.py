"""The words that a customer reads while a booking goes its way. One place, so that they agree."""

from typing import Final

CREATED: Final = "Your booking is confirmed."
SCHEDULED: Final = "Your booking is confirmed. It opens at the start of your slot."
ASKING_FAVOURITE: Final = "We are asking your favourite mechanic."
FAVOURITE_SAW: Final = "Your favourite mechanic is looking at your request."
WAITING_FOR_FAVOURITE: Final = "We let you know as soon as your favourite mechanic is here."
FAVOURITE_ASKED: Final = "Your favourite mechanic has your request. We wait for the answer."
ASKING_WORKSHOP: Final = "We are asking your workshop first."
LOOKING: Final = "We are looking for a mechanic."
FALLEN_BACK: Final = "Your favourite mechanic cannot take it now. We are asking everyone."
NOBODY_ONLINE: Final = "Nobody is online right now. The first mechanic who comes gets your request."
ACCEPTED: Final = "A mechanic accepted. Waiting for both of you to join."
MECHANIC_JOINED: Final = "1 mechanic connected."
STARTED: Final = "1 mechanic connected. Your session has started."
MECHANIC_CANCELLED: Final = "Your mechanic had to cancel. Finding you another mechanic…"
COMPLETED: Final = "Your session has ended."
CANCELLED: Final = "Your booking was cancelled. Any payment is refunded."
EXPIRED: Final = "No mechanic could take your request. Any payment is refunded."

# Of a payment that is looked at or goes back.
PAYMENT_OPEN: Final = "Not paid yet."
PAYMENT_EXPECTED: Final = "Your payment is being confirmed."
PAYMENT_REFUND_FAILED: Final = "A refund of your payment of {received} did not go through."
PAYMENT_HELD: Final = "We are looking at your payment of {received}, and will be in touch."
PAYMENT_REFUNDING: Final = "Your payment of {left} is on its way back to you."
PAYMENT_REFUNDED: Final = "{refunded} of your payment of {received} was given back."
PAYMENT_CREDITED: Final = "{credited} of your payment of {received} is yours as credits."
# Why, by the word that is kept with it; money that went back for another reason says nothing.
WHY_REFUNDED: Final = {
    "active_session_exists": "You have an active session already.",
    "already_booked": "This booking was paid before.",
    "slot_full": "The slot is full.",
    "slot_over": "The time of the slot is over.",
    "expired": "No mechanic could take your request.",
    "cancelled": "Your booking was cancelled.",
    "customer_left": "You left before the session began.",
    "customer_absent": "The session did not begin in time.",
}
