"""The application of the proof in processes that do often what is seldom due: folds, bases, and forgetting.

In a run of minutes nothing would otherwise be old or large enough to be written into a store, made a base of, or
deleted from a topic, and no restore would find anything but deltas. `tests.kafka.proof.running.BRISK` are the settings
that belong to it.
"""

from __future__ import annotations

from penstock.engine import upkeep
from penstock.engine.cluster import candidate, leading
from tests.kafka.proof import app as proof

app = proof.app

upkeep.BASE_DELTAS = 12
upkeep.FOLD_SHARE = 10_000
leading.AGE_S = 0.7
vars(candidate)["UNREFERENCED_S"] = 20
