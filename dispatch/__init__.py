"""Dispatch: paid jobs offered to the right mechanics over websockets; the first accept wins."""
