"""Where keyed values live: the overlay of one epoch, deltas and bases, storage backends, timers, expiration.

A value at rest is bytes, and belongs to exactly one key group. When a snapshot is taken and which message is
next are questions for `penstock.checkpoint` and `penstock.router`, which this package never imports.
"""
