"""Measurements that print ratios against a floor or a peer of the same run. Not part of the package."""
