"""Penstock: stateful functions that survive a crash with nothing lost and nothing doubled."""
