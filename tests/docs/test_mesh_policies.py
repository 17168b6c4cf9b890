"""docs/mesh.md explains each policy of the mesh, and shows it in a snippet; snippets are run by test_snippets."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS

POLICIES = [
    # What, in which section, and what stands in a snippet of it.
    ("retries: conditions", "Retries", '"connect-failure", 200'),
    ("retries: a key", "Retries", "keyed=True"),
    ("retries: back-off", "Retries", "backoff:"),
    ("retries: budget", "Retries", "retry_budget:"),
    ("retries: previous hosts", "Retries", "previous_hosts:"),
    ("per-try timeout", "Timeouts", "per_try_timeout:"),
    ("overall deadline", "Timeouts", "timeout_ms="),
    ("concurrency limits", "Limits", "limits:"),
    ("breaker", "Breaker", "breaker:"),
    ("outlier ejection", "Outlier detection", "outlier_detection:"),
    ("panic threshold", "Outlier detection", "panic_threshold:"),
    *(
        ("load balancing", "Load balancing", each)
        for each in ("RING_HASH", "ROUND_ROBIN", "LEAST_REQUEST", "PEAK_EWMA")
    ),
    ("split", "Split", "split:"),
    ("mirror", "Mirror", "mirror:"),
    ("fault injection", "Faults", "fault:"),
    ("rate limit", "Rate limit", "rate_limit:"),
    ("load shedding: by successes", "Load shedding", "admission_control:"),
    ("load shedding: by latency", "Load shedding", "adaptive_concurrency:"),
    ("access rules", "Access", "access:"),
]
PAGE = (DOCS / "mesh.md").read_text()


@pytest.mark.parametrize(("policy", "heading", "shown"), POLICIES)
def test_each_policy_has_its_section_and_a_snippet(policy: str, heading: str, shown: str) -> None:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, policy
    snippets = re.findall(r"^```python\n(.*?)^```", found[1], re.MULTILINE | re.DOTALL)
    assert any(shown in snippet for snippet in snippets), policy
