from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.checkpoint.blobs import BucketOptions
from penstock.engine.cluster.options import cluster_options
from penstock.engine.settings import SPECS, format_size, load_settings, parse_size, schema
from penstock.errors import ConfigurationError
from penstock.router.kafka_options import KafkaOptions


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


def test_what_is_for_verbs_is_neither_a_setting_nor_a_slip_of_the_pen(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {"PENSTOCK_URL": "http://127.0.0.1:7070"}, {}).ignored == ()


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


# On Kafka.


def test_a_table_of_a_file_has_properties_under_kafkas_names(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text(
        '[kafka]\nbootstrap.servers = "a:1,b:2"\n"security.protocol" = "SASL_SSL"\nsasl.mechanism = "PLAIN"\n'
        'sasl.username = "ada"\nsasl.password = "${SECRET}"\nrequest.timeout.ms = 5000\n'
    )

    settings = load_settings(tmp_path, {}, {})

    assert (settings["kafka"], settings.origin("kafka")) == ("a:1,b:2", "penstock.toml")
    assert settings.kafka().properties == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ada",
        "sasl.password": "${SECRET}",
        "request.timeout.ms": "5000",
    }


def test_properties_come_from_the_environment_and_from_flags_too(tmp_path: Path) -> None:
    environment = {
        "PENSTOCK_KAFKA": "a:1",
        "PENSTOCK_KAFKA_CLIENT_ID": "shop",
        "PENSTOCK_KAFKA_REQUEST_TIMEOUT_MS": "5000",
        "PENSTOCK_KAFKA_PORT_9092_TCP": "tcp://10.0.0.1:9092",
    }

    settings = load_settings(tmp_path, environment, {"property": ("request.timeout.ms=6000", "retry.backoff.ms=7")})

    found = {each.name: (each.text, each.origin) for each in settings if each.name.startswith("kafka.")}
    assert found == {
        "kafka.client.id": ("shop", "PENSTOCK_KAFKA_CLIENT_ID"),
        "kafka.request.timeout.ms": ("6000", "--property"),
        "kafka.retry.backoff.ms": ("7", "--property"),
    }
    assert settings.ignored == ("PENSTOCK_KAFKA_PORT_9092_TCP",)


def test_a_secret_among_properties_is_never_shown_and_a_reference_to_one_is(tmp_path: Path) -> None:
    flags = {"property": ("sasl.password=s3cret", "ssl.key.password=file:/run/key", 'sasl.jaas.config=password="x";')}

    shown = {each.name: each.text for each in load_settings(tmp_path, {}, flags)}

    assert shown["kafka.sasl.password"] == "***"
    assert shown["kafka.sasl.jaas.config"] == "***"
    assert shown["kafka.ssl.key.password"] == "file:/run/key"


def test_a_property_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('[kafka]\nsasl.pasword = "s3cret"\n')

    assert refusal(tmp_path) == (
        "PEN0701 'sasl.pasword' is no property of a Kafka client here. Did you mean sasl.password or ssl.key.password?"
    )


def test_on_kafka_there_are_more_tasks_unless_something_is_said(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}, {"kafka": "a:1"})["parallelism"] == 8
    assert load_settings(tmp_path, {"PENSTOCK_PARALLELISM": "1"}, {"kafka": "a:1"})["parallelism"] == 1


def test_in_a_file_settings_may_wait_for_kafka_but_not_workers(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('store = "s3://bucket/shop"\n')
    load_settings(tmp_path, {}, {}).check()

    with pytest.raises(ConfigurationError) as raised:
        load_settings(tmp_path, {"PENSTOCK_WORKERS": "2"}, {}).check()
    assert str(raised.value) == (
        "PEN0773 workers (from PENSTOCK_WORKERS) is for an application that runs on Kafka, and no brokers are named. "
        "Name them with --kafka HOST:PORT, or leave out workers (from PENSTOCK_WORKERS)."
    )


def test_workers_get_the_settings_of_the_cluster(tmp_path: Path) -> None:
    flags = {"kafka": "a:1", "workers": "3", "session_timeout": "2s", "store": "s3://bucket", "store_region": "eu"}

    options = cluster_options(load_settings(tmp_path, {}, flags), tmp_path, name="here#1", candidate=False)

    assert options.kafka == KafkaOptions("a:1")
    assert (options.store, options.store_options) == ("s3://bucket", BucketOptions(region="eu"))
    assert (options.workers_expected, options.session_ms, options.heartbeat_ms) == (3, 2_000, 400)
    assert (options.name, options.candidate, options.replicas) == ("here#1", False, None)


def test_without_a_store_it_is_beside_the_workers(tmp_path: Path) -> None:
    options = cluster_options(load_settings(tmp_path, {}, {"kafka": "a:1"}), tmp_path)

    assert (options.store, options.store_options) == (str(tmp_path / "store"), None)
