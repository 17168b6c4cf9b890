"""How a run becomes durable as a whole: barriers, task snapshots, coordinator, manifests, stores, recovery.

A checkpoint is complete when its manifest is durable, and not before; a recovery starts from a complete
checkpoint or refuses to start. The bytes of values and logs come from `penstock.state` and `penstock.router`
by way of the engine: the three never import one another.
"""
