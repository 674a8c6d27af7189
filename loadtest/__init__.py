"""Real load on a running server: real clients, a checker over what they saw, and a report.

Nothing here imports `dispatch`: everything is known from the wire, so that a fault of the server
cannot hide in code that both sides share.
"""
