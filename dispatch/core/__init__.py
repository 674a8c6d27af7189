"""The pure core: what to do, decided without I/O, clock, randomness or asyncio."""
