"""`penstock mesh check-policy`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.errors import ConfigurationError
from penstock.mesh.cli_policy import check_policy

TEXT = """
functions:
  shop/payment:
    outlier_detection: {consecutive_5xx: 3}
routes:
- match: {function: shop/payment}
  timeout: 2s
"""


def invoke(*arguments: str) -> Result:
    # Commands keep what their help is called, which the group above them says otherwise.
    return CliRunner().invoke(check_policy, arguments, help_option_names=["-h", "--help"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(TEXT)
    return path


def test_a_file_is_counted_and_its_warnings_are_told(path: Path) -> None:
    said = invoke(str(path), "--replicas", "3").output.splitlines()

    assert said[0].startswith(f"{path} can be used: 1 function, 1 route, 0 access rules (")
    assert said[1].startswith("Warning: line 4, functions.shop/payment.outlier_detection: one of 3 endpoints is 33.3 %")


def test_with_json_programs_can_read_it(path: Path) -> None:
    found = json.loads(invoke(str(path), "--json").output)

    assert (found["functions"], found["routes"], found["access_rules"]) == (["shop/payment"], 1, 0)
    assert len(found["warnings"]) == 1


def test_names_that_an_application_does_not_have_are_told_with_the_nearest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    app = """
from penstock import App, Context

app = App("shop")


@app.function("shop/payment")
def payment(ctx: Context[None], amount: int) -> None:
    pass
"""
    (path.parent / "till.py").write_text(app)
    path.write_text("""
functions:
  shop/paymnet: {limits: {max_requests: 5}}
  app/stock: {limits: {max_requests: 5}}
routes:
- match: [{function: {prefix: shop/}}, {function: shop/payment, caller: shop/oder}, {function: {prefix: bank/}}]
  timeout: 2s
access:
- {destination: shop/payment, sources: [shop/payment, "spiffe://demo.local/ns/default/sa/shop", app/till]}
""")

    said = invoke(path.name, "till:app").output.splitlines()

    unknown = "is no function of this application"
    assert said[1:] == [
        f"Warning: functions: shop/paymnet {unknown} (did you mean shop/payment?), so nothing is done for it",
        f"Warning: routes, caller: shop/oder {unknown} (there are shop/payment), so nobody asks under that name",
    ]
    assert invoke(path.name).output.splitlines()[1:] == []


def test_an_application_that_is_not_there(path: Path) -> None:
    assert isinstance(invoke(str(path), "nowhere:app").exception, ConfigurationError)


@pytest.mark.parametrize(("text", "told"), [("routes: 5", "routes: expected a list"), (None, "can't be read")])
def test_a_file_that_can_not_be_used_ends_the_command(path: Path, text: str | None, told: str) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)

    result = invoke(str(path))

    assert isinstance(result.exception, ConfigurationError)
    assert told in result.exception.message
