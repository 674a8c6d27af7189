"""Measured comparisons: `python -m bench [fanout|echo|accept|all]`, see `README.md` beside this."""
