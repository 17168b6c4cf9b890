"""The application on many workers: a leader that decides, workers that do, and Kafka between them.

`leading` drives the one, `worker` the other; what they decide is in `penstock.checkpoint.leader` and `member`.
"""
