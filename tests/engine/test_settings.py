from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.engine.settings import SPECS, format_size, load_settings, parse_size, schema
from penstock.errors import ConfigurationError


def refusal(folder: Path, environment: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(folder, environment or {}, flags)
    return str(raised.value)


def test_defaults_make_the_default_configuration(tmp_path: Path) -> None:
    from penstock.engine.config import Config

    assert load_settings(tmp_path, {}, {}).to_config() == Config()


def test_each_source_overrides_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.penstock]\nmemory = "128MB"\ninterval = "50ms"\nport = 1\n')

    settings = load_settings(tmp_path, {"PENSTOCK_INTERVAL": "100ms", "PENSTOCK_PORT": "2"}, {"port": "3"})

    found = {each.name: (each.value, each.origin) for each in settings}
    assert found["memory"] == (128 << 20, "pyproject.toml")
    assert found["interval"] == (100, "PENSTOCK_INTERVAL")
    assert found["port"] == (3, "--port")
    assert found["parallelism"] == (1, "default")


def test_its_own_file_wins_over_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\nparallelism = 2\n")
    (tmp_path / "penstock.toml").write_text("parallelism = 4\n")

    settings = load_settings(tmp_path, {}, {})

    assert (settings["parallelism"], settings.origin("parallelism")) == (4, "penstock.toml")


def test_a_project_without_a_section_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')

    assert {each.origin for each in load_settings(tmp_path, {}, {})} == {"default"}


def test_an_unknown_setting_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('memmory = "1GB"\n')

    assert refusal(tmp_path) == (
        "PEN0153 penstock.toml sets memmory, which is no setting. Did you mean memory? "
        "All are listed by: penstock config show."
    )


def test_an_unknown_variable_is_noted_and_ignored(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"PENSTOCK_SERVICE_HOST": "10.0.0.1", "PATH": "/bin"}, {})

    assert settings.ignored == ("PENSTOCK_SERVICE_HOST",)


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("memory =\n")

    assert refusal(tmp_path).startswith(f"PEN0151 {tmp_path / 'penstock.toml'} can't be read: ")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("memory", "much", "a size such as 64MB or 1GB"),
        ("interval", "soon", "a duration such as 200ms, 30s or 1h30m"),
        ("parallelism", "two", "a whole number"),
        ("port", "tcp://10.0.0.1:7070", "a port from 0 to 65535, or none"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("log_json", "perhaps", "true or false"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_origin(
    tmp_path: Path, name: str, value: str, wanted: str
) -> None:
    variable = f"PENSTOCK_{name.upper()}"

    assert refusal(tmp_path, {variable: value}) == (
        f"PEN0152 {name} = {value!r} (from {variable}) is not acceptable. Give {wanted}."
    )


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(tmp_path, {}, {"host": "0.0.0.0"}).to_config()

    assert str(raised.value) == (
        "PEN0602 Refused to listen on 0.0.0.0 without a token: everyone who reaches it could read and change state. "
        "Set PENSTOCK_TOKEN (or token in the configuration), or listen on 127.0.0.1."
    )


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"PENSTOCK_TOKEN": "s3cret"}, {})

    assert settings["token"] == "s3cret"
    assert {each.name: each.text for each in settings}["token"] == "***"


def test_values_are_shown_as_a_person_writes_them(tmp_path: Path) -> None:
    shown = {each.name: each.text for each in load_settings(tmp_path, {}, {"port": "none"})}

    assert (shown["memory"], shown["interval"], shown["port"], shown["log_json"]) == ("1GB", "200ms", "none", "false")


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 1 << 30), ("64 MB", 64 << 20), ("1.5kb", 1536), ("10", 10), (7, 7), ("2MiB", 2 << 20)]
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


def test_sizes_are_written_in_the_largest_whole_unit() -> None:
    assert [format_size(size) for size in (0, 10, 1024, 1536, 10 << 30)] == ["0B", "10B", "1KB", "1536B", "10GB"]


def test_the_schema_has_every_setting_and_no_secret_default() -> None:
    properties = schema()["properties"]

    assert list(properties) == [spec.name for spec in SPECS]
    assert "default" not in properties["token"]
