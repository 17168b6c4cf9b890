"""How to reach a Kafka cluster: its addresses, and properties under the names Kafka itself gives them.

What always holds: options that exist are complete and consistent, as far as this can be known without asking anybody;
a secret is resolved only when a client is made, and never shown. Reads certificates and files of secrets then; connects
to nothing, and knows no client library.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import ConfigurationError

REQUEST_TIMEOUT_MS = 30_000
"""Kafka's own default. It bounds how long a broker that is frozen, not dead, holds up what was sent to it."""

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_IDENTIFICATION = "ssl.endpoint.identification.algorithm"

_ARGUMENTS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "client.id": ("client_id", str),
    "connections.max.idle.ms": ("connections_max_idle_ms", int),
    "metadata.max.age.ms": ("metadata_max_age_ms", int),
    "request.timeout.ms": ("request_timeout_ms", int),
    "retry.backoff.ms": ("retry_backoff_ms", int),
    "sasl.mechanism": ("sasl_mechanism", str),
    "sasl.password": ("sasl_plain_password", str),
    "sasl.username": ("sasl_plain_username", str),
    "security.protocol": ("security_protocol", str),
}
"""Property -> argument of a client, and how its text is read."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "security.protocol": _PROTOCOLS,
    "sasl.mechanism": _MECHANISMS,
    "ssl.keystore.type": ("PEM",),
    "ssl.truststore.type": ("PEM",),
    _IDENTIFICATION: ("https", ""),
}
PROPERTIES = frozenset(
    {
        *_ARGUMENTS,
        *_CHOICES,
        "sasl.jaas.config",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.keystore.location",
        "ssl.truststore.certificates",
        "ssl.truststore.location",
    }
)
"""The names of all that can be set."""
_SECRET = re.compile(r"password|jaas")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE = "file:"
_JAAS = re.compile(r'\b(username|password)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:,\[\]]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, repr=False)
class KafkaOptions:
    """A cluster, as `bootstrap` addresses and Kafka properties: `{"security.protocol": "SASL_SSL", ...}`.

    A value may name an environment variable, `${KAFKA_PASSWORD}`, or be `file:/path` to a file that holds it: then the
    secret itself stands nowhere in the application. TLS reads PEM files: `ssl.ca.location`, `ssl.certificate.location`
    and `ssl.key.location`, or `ssl.truststore.location` and `ssl.keystore.location` of type PEM. SASL knows PLAIN and
    SCRAM, with `sasl.username` and `sasl.password` or with `sasl.jaas.config`.

    Raises ConfigurationError for a property that does not exist, and for values that can't be meant.
    """

    bootstrap: str
    properties: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_bootstrap(self.bootstrap)
        object.__setattr__(self, "properties", {name: str(value) for name, value in self.properties.items()})
        for name, value in self.properties.items():
            if name not in PROPERTIES:
                raise unknown_property(name)
            if not _is_reference(value):
                _check_value(name, value)
        self._check_relations()

    def __repr__(self) -> str:
        return f"KafkaOptions({self.bootstrap!r}, {self.redacted()!r})"

    def redacted(self) -> dict[str, str]:
        """The properties with asterisks for secrets; what only refers to a secret is shown as it is."""
        return {name: redacted(name, value) for name, value in sorted(self.properties.items())}

    @property
    def request_timeout_s(self) -> float:
        """How long one request may take. Raises ConfigurationError when the variable that says so is not set."""
        return int(self._resolved("request.timeout.ms") or REQUEST_TIMEOUT_MS) / 1000

    def client_arguments(self) -> dict[str, Any]:
        """The keyword arguments that producers, consumers and admin clients share. Secrets are read here.

        Raises ConfigurationError when a variable is not set, or a file can't be read.
        """
        arguments: dict[str, Any] = {
            "bootstrap_servers": [address.strip() for address in self.bootstrap.split(",")],
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        for name, (argument, read) in _ARGUMENTS.items():
            value = self._resolved(name)
            if value is not None:
                _check_value(name, value)
                arguments[argument] = read(value)
        jaas = self._resolved("sasl.jaas.config")
        if jaas is not None:
            arguments |= _from_jaas(jaas)
        if arguments.get("security_protocol", "PLAINTEXT").endswith("SSL"):
            arguments["ssl_context"] = self._ssl_context()
        return arguments

    def _check_relations(self) -> None:
        protocol = self.properties.get("security.protocol", "PLAINTEXT")
        if _is_reference(protocol):
            return  # Known only when a client is made; the client then refuses what does not fit.
        for prefix in ("sasl.", "ssl."):
            given = sorted(name for name in self.properties if name.startswith(prefix))
            wanted = protocol.startswith("SASL") if prefix == "sasl." else protocol.endswith("SSL")
            if given and not wanted:
                other = "SASL_SSL" if prefix == "sasl." else "SSL"
                raise ConfigurationError(
                    "PEN0702",
                    f"{given[0]} is given, but security.protocol is {protocol}, which does not use it. "
                    f'Set "security.protocol": "{other}", or remove {given[0]}.',
                )
        if protocol.startswith("SASL") and "sasl.jaas.config" not in self.properties:
            for name in ("sasl.username", "sasl.password"):
                if name not in self.properties:
                    raise ConfigurationError(
                        "PEN0702",
                        f"security.protocol is {protocol}, and {name} is missing. Give it, or sasl.jaas.config.",
                    )

    def _resolved(self, name: str) -> str | None:
        value = self.properties.get(name)
        return None if value is None else _resolve(name, value)

    def _ssl_context(self) -> ssl.SSLContext:
        authorities = self._resolved("ssl.ca.location") or self._resolved("ssl.truststore.location")
        certificate = self._resolved("ssl.certificate.location") or self._resolved("ssl.keystore.location")
        try:
            context = ssl.create_default_context(
                cafile=authorities, cadata=self._resolved("ssl.truststore.certificates")
            )
            if certificate is not None:
                context.load_cert_chain(
                    certificate, self._resolved("ssl.key.location"), self._resolved("ssl.key.password") or ""
                )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError.
            raise ConfigurationError(
                "PEN0704",
                f"The certificates for Kafka can't be used: {error} (authorities: {authorities or 'the system'}, "
                f"own certificate: {certificate or 'none'}). Give readable PEM files, and the password of the key.",
            ) from error
        if self.properties.get(_IDENTIFICATION) == "":
            context.check_hostname = False
        return context


def redacted(name: str, value: str) -> str:
    """One property as it may be shown."""
    return "***" if _SECRET.search(name) and not _is_reference(value) else value


def unknown_property(name: str) -> ConfigurationError:
    near = difflib.get_close_matches(name, PROPERTIES, n=3)
    known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(PROPERTIES))}."
    return ConfigurationError("PEN0701", f"{name!r} is no property of a Kafka client here. {known}")


def _check_bootstrap(bootstrap: str) -> None:
    for address in bootstrap.split(","):
        match = _ADDRESS.fullmatch(address.strip())
        if match is None or not 0 < int(match[1] or 9092) < 65_536:
            raise ConfigurationError(
                "PEN0700",
                f"{bootstrap!r} are no addresses of Kafka brokers, because of {address!r}. "
                "Write them as host:port, with commas between.",
            )


def _check_value(name: str, value: str) -> None:
    choices = _CHOICES.get(name)
    if choices is not None and value not in choices:
        raise ConfigurationError(
            "PEN0702", f"{name} is {value!r}. Give one of {', '.join(choice or 'an empty text' for choice in choices)}."
        )
    if name.endswith(".ms") and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ConfigurationError("PEN0702", f"{name} is {value!r}. Give a whole number of milliseconds above 0.")


def _is_reference(value: str) -> bool:
    return value.startswith(_FILE) or _REFERENCE.search(value) is not None


def _resolve(name: str, value: str) -> str:
    """`value` with what it refers to in its place."""
    if value.startswith(_FILE):
        path = Path(value.removeprefix(_FILE))
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                "PEN0703", f"{name} is to be read from {path}: {error}. Put it there, as text this process may read."
            ) from error

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigurationError(
                "PEN0703", f"{name} refers to the environment variable {match[1]}, which is not set. Set it."
            )
        return found

    return _REFERENCE.sub(variable, value)


def _from_jaas(text: str) -> dict[str, str]:
    """The user and password of a JAAS line, as the Java client writes it."""
    found = {
        match[1]: re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _JAAS.finditer(text)
    }
    if found.keys() != {"username", "password"}:
        raise ConfigurationError(
            "PEN0702",
            'sasl.jaas.config names no username and password. Write it as: ...LoginModule required username="..." '
            'password="...";  or give sasl.username and sasl.password.',
        )
    return {"sasl_plain_username": found["username"], "sasl_plain_password": found["password"]}
