"""Servers of other people, to be measured beside ours: `python -m bench.peers` installs them."""
