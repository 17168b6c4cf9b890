"""Options of a cluster: what is refused, what a client gets, and that no secret is ever shown."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.router.kafka_options import KafkaOptions

SASL = {"security.protocol": "SASL_PLAINTEXT", "sasl.username": "app", "sasl.password": "s3cret"}


def code_of(bootstrap: str, properties: Mapping[str, str]) -> tuple[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        KafkaOptions(bootstrap, properties)
    return caught.value.code, str(caught.value)


def test_addresses_become_a_list() -> None:
    arguments = KafkaOptions("a:9092, b:9093,[::1]:9094").client_arguments()

    assert arguments["bootstrap_servers"] == ["a:9092", "b:9093", "[::1]:9094"]


@pytest.mark.parametrize("bootstrap", ["", "a:9092,", "a:b", "a:70000", "a:0", "kafka://a:9092"])
def test_addresses_that_are_none_are_refused(bootstrap: str) -> None:
    assert code_of(bootstrap, {})[0] == "PEN0700"


def test_an_unknown_property_is_refused_with_what_was_meant() -> None:
    code, text = code_of("a", {"security.protokol": "SSL"})

    assert code == "PEN0701"
    assert "security.protocol" in text


def test_properties_become_arguments() -> None:
    arguments = KafkaOptions("a", SASL | {"sasl.mechanism": "SCRAM-SHA-512", "request.timeout.ms": "5000"})

    assert arguments.client_arguments() == {
        "bootstrap_servers": ["a"],
        "request_timeout_ms": 5000,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_password": "s3cret",
        "sasl_plain_username": "app",
        "security_protocol": "SASL_PLAINTEXT",
    }
    assert arguments.request_timeout_s == 5.0


@pytest.mark.parametrize(
    "properties",
    [
        {"security.protocol": "TLS"},
        {"request.timeout.ms": "soon"},
        {"request.timeout.ms": "0"},
        {"sasl.username": "app"},
        {"ssl.ca.location": "ca.pem"},
        {"security.protocol": "SASL_SSL", "sasl.username": "app"},
        {"security.protocol": "SSL", "ssl.truststore.type": "JKS"},
        SASL | {"sasl.mechanism": "OAUTHBEARER"},
    ],
)
def test_values_that_cannot_be_meant_are_refused(properties: Mapping[str, str]) -> None:
    assert code_of("a", properties)[0] == "PEN0702"


def test_secrets_are_never_shown() -> None:
    jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="app" password="s3cret";'
    for properties in (SASL, {"security.protocol": "SASL_PLAINTEXT", "sasl.jaas.config": jaas}):
        options = KafkaOptions("a", properties)

        assert "s3cret" not in repr(options) + str(options) + str(options.redacted())
        assert "SASL_PLAINTEXT" in repr(options)


def test_a_secret_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = KafkaOptions("a", SASL | {"sasl.password": "${KAFKA_PASSWORD}"})
    assert options.redacted()["sasl.password"] == "${KAFKA_PASSWORD}"

    monkeypatch.setenv("KAFKA_PASSWORD", "s3cret")
    assert options.client_arguments()["sasl_plain_password"] == "s3cret"

    monkeypatch.delenv("KAFKA_PASSWORD")
    with pytest.raises(ConfigurationError) as caught:
        options.client_arguments()
    assert caught.value.code == "PEN0703"
    assert "KAFKA_PASSWORD" in str(caught.value)


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    options = KafkaOptions("a", SASL | {"sasl.password": f"file:{secret}"})
    with pytest.raises(ConfigurationError) as caught:
        options.client_arguments()
    assert caught.value.code == "PEN0703"

    secret.write_text("s3cret\n")
    assert options.client_arguments()["sasl_plain_password"] == "s3cret"


def test_what_a_reference_holds_is_checked_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    options = KafkaOptions("a", {"request.timeout.ms": "${TIMEOUT_MS}"})
    monkeypatch.setenv("TIMEOUT_MS", "soon")

    with pytest.raises(ConfigurationError) as caught:
        options.client_arguments()

    assert caught.value.code == "PEN0702"


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ('x.PlainLoginModule required username="app" password="a b\\"c;";', 'a b"c;'),
        ("x.ScramLoginModule required password=plain username=app;", "plain"),
    ],
)
def test_a_jaas_line_names_user_and_password(line: str, password: str) -> None:
    arguments = KafkaOptions("a", {"security.protocol": "SASL_PLAINTEXT", "sasl.jaas.config": line}).client_arguments()

    assert arguments["sasl_plain_username"] == "app"
    assert arguments["sasl_plain_password"] == password


def test_a_jaas_line_without_a_password_is_refused() -> None:
    options = KafkaOptions("a", {"security.protocol": "SASL_PLAINTEXT", "sasl.jaas.config": "x required;"})

    with pytest.raises(ConfigurationError) as caught:
        options.client_arguments()

    assert caught.value.code == "PEN0702"


def test_tls_checks_the_name_of_the_broker_unless_told_otherwise() -> None:
    checked = KafkaOptions("a", {"security.protocol": "SSL"}).client_arguments()["ssl_context"]
    unchecked = KafkaOptions(
        "a", {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": ""}
    ).client_arguments()["ssl_context"]

    assert checked.check_hostname
    assert not unchecked.check_hostname
    assert unchecked.verify_mode is ssl.CERT_REQUIRED


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    options = KafkaOptions("a", {"security.protocol": "SSL", "ssl.ca.location": str(tmp_path / "ca.pem")})

    with pytest.raises(ConfigurationError) as caught:
        options.client_arguments()

    assert caught.value.code == "PEN0704"
    assert "ca.pem" in str(caught.value)
