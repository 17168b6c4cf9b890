"""How the documents of Kubernetes name what is a function here, and what all of them have."""

from __future__ import annotations

from penstock.mesh.fields import Section

DEFAULT_NAMESPACE = "default"


class Head:
    """The parts around `spec` of one document."""

    def __init__(self, document: Section) -> None:
        document.has("apiVersion")
        document.has("kind")
        metadata = document.section("metadata")
        self.namespace = DEFAULT_NAMESPACE
        self.name = ""
        if metadata is not None:
            self.name = metadata.text("name")
            self.namespace = metadata.text("namespace", DEFAULT_NAMESPACE)
            for about in ("annotations", "labels"):
                metadata.has(about)  # They say something to people and tools, and nothing about requests.
            metadata.finish()

    def function(self, host: str) -> str:
        """The typename that a host, a service or an app stands for."""
        if "/" in host:
            return host
        name, _, rest = host.partition(".")
        return f"{rest.partition('.')[0] or self.namespace}/{name}"


def spec_of(document: Section) -> Section | None:
    """What a document asks for; its absence is noted."""
    spec = document.section("spec")
    if spec is None:
        document.error("spec", "it is missing")
    document.finish()
    return spec
