"""The containers for users, as far as that can be told without an engine to run them: the file is sound, and what it
publishes is published to this machine only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
IMAGES = [service["image"] for service in SERVICES.values() if "image" in service]
IMAGES += [line.removeprefix("FROM ") for line in DOCKERFILE if line.startswith("FROM ")]


def test_there_are_two_workers_that_differ_in_their_port_only() -> None:
    first, second = ({**SERVICES[name], "ports": None} for name in ("worker-1", "worker-2"))

    assert first == second
    assert SERVICES["worker-1"]["ports"] != SERVICES["worker-2"]["ports"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_that_can_say_they_are_ready(name: str) -> None:
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        assert wanted["condition"] == "service_completed_successfully" or "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_published_is_for_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_stores_has_a_volume(name: str) -> None:
    mounted = (each.partition(":")[0] for each in SERVICES[name].get("volumes", []))

    assert all(source in COMPOSE["volumes"] or (ROOT / source).is_dir() for source in mounted)


@pytest.mark.parametrize("image", IMAGES)
def test_images_have_a_version(image: str) -> None:
    assert image.partition(":")[2] not in {"", "latest"}


def test_the_application_it_runs_exists() -> None:
    default = SERVICES["worker-1"]["environment"]["PENSTOCK_APP"].partition(":-")[2].rstrip("}")

    assert (ROOT / "examples" / default).is_file()


def test_the_container_runs_as_nobody_special() -> None:
    assert "USER penstock" in DOCKERFILE
