"""The words that a customer reads while a booking goes its way. One place, so that they agree."""

from typing import Final

CREATED: Final = "Your booking is confirmed."
SCHEDULED: Final = "Your booking is confirmed. It opens at the start of your slot."
ASKING_FAVOURITE: Final = "We are asking your favourite mechanic."
FAVOURITE_SAW: Final = "Your favourite mechanic is looking at your request."
WAITING_FOR_FAVOURITE: Final = "We let you know as soon as your favourite mechanic is here."
ASKING_WORKSHOP: Final = "We are asking your workshop first."
LOOKING: Final = "We are looking for a mechanic."
NOBODY_ONLINE: Final = "Nobody is online right now. The first mechanic who comes gets your request."
ACCEPTED: Final = "A mechanic accepted. Waiting for both of you to join."
MECHANIC_JOINED: Final = "1 mechanic connected."
STARTED: Final = "1 mechanic connected. Your session has started."
MECHANIC_CANCELLED: Final = "Your mechanic had to cancel. Finding you another mechanic…"
COMPLETED: Final = "Your session has ended."
CANCELLED: Final = "Your booking was cancelled. Any payment is refunded."
EXPIRED: Final = "No mechanic could take your request. Any payment is refunded."
