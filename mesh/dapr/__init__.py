"""The HTTP interface of a Dapr sidecar, as far as applications on its SDKs use it for invocation, actors and topics.

What Dapr keeps in components (a state store, a broker, a placement service) is one SQLite file and the registry of the
mesh here. What is not answered is said with 404 and a list of what is; gRPC is not spoken.
"""
