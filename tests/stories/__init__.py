"""Five awkward bookings, played on real servers and told frame by frame (docs/stories.md)."""
