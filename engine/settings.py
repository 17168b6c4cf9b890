"""Where the configuration comes from: defaults, a file, the environment, flags; each overrides those before it.

    penstock.toml, or [tool.penstock] of pyproject.toml     memory = "1GB"
    the environment                                         PENSTOCK_MEMORY=1GB
    flags                                                   --memory 1GB

Properties of Kafka clients are settings under Kafka's own names:

    [kafka] security.protocol = "SASL_SSL"      PENSTOCK_KAFKA_SECURITY_PROTOCOL      --property security.protocol=...

What always holds: every setting is in the table below, with its kind, its default and what it is for, and nowhere else;
a value that can't be used is refused with its origin, before anything starts; a setting that does not exist is an error
in a file, where it is a slip of the pen. Reads files and the given environment; starts nothing.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from penstock.checkpoint.blobs import BucketOptions
from penstock.checkpoint.retention import Retention
from penstock.durations import format_duration, parse_duration, parse_duration_text
from penstock.engine.config import Config
from penstock.errors import ConfigurationError
from penstock.faults import FAULT_VARIABLE
from penstock.router.kafka_options import PROPERTIES, KafkaOptions, redacted, unknown_property

SIZE_UNITS: Final = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
REDACTED: Final = "***"
ENVIRONMENT_PREFIX: Final = "PENSTOCK_"
_NO_SETTINGS = frozenset({"PENSTOCK_URL", FAULT_VARIABLE})
"""What is for one command: which application a verb is about, and faults."""
BOOTSTRAP: Final = "bootstrap.servers"
"""The property that is the setting `kafka` itself."""
PROPERTY_PREFIX: Final = "kafka."
"""Of settings that are properties of Kafka clients, under Kafka's own names."""
CLUSTER_PARALLELISM: Final = 8
"""The default on Kafka: some tasks for each of a few workers, since no more workers than tasks can share the work."""
CLUSTER_ONLY: Final = ("kafka.", "workers", "name", "store", "replicas", "session_timeout")
"""What settings begin with that mean something on Kafka only. In a file or the environment they may wait for it."""


class Kind(NamedTuple):
    """How a value is read, what to call it, and its JSON schema."""

    what: str
    parse: Callable[[Any], Any]
    schema: Mapping[str, Any]


def parse_size(text: Any) -> int:
    """`1GB`, `64 MB`, `500KB` or a number of bytes. Units are powers of 1,024, as for memory. Raises ValueError."""
    match = _SIZE.fullmatch(str(text).strip())
    if isinstance(text, bool) or match is None:
        raise ValueError(f"{text!r} is no size")
    return int(float(match[1]) * SIZE_UNITS[f"{match[2].upper()}B"])


def format_size(count: int) -> str:
    """The size in the largest unit that gives a whole number."""
    unit = next(unit for unit in reversed(SIZE_UNITS) if (count and count % SIZE_UNITS[unit] == 0) or unit == "B")
    return f"{count // SIZE_UNITS[unit]}{unit}"


def _duration_ms(value: Any) -> int:
    """Texts from the environment may be plain numbers, which are seconds, as in a file."""
    return parse_duration_text(value) if isinstance(value, str) else parse_duration(value)


def _port(value: Any) -> int | None:
    if value == "none":
        return None
    port = msgspec.convert(value, int, strict=False)
    if not 0 <= port <= 65_535:
        raise ValueError(f"{port} is no port")
    return port


def _level(value: Any) -> str:
    if str(value).lower() not in LOG_LEVELS:
        raise ValueError(f"{value!r} is no level")
    return str(value).lower()


def _plain(type_: Any) -> Callable[[Any], Any]:
    return lambda value: msgspec.convert(value, type_, strict=False)


def _count(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        count: int = msgspec.convert(value, int, strict=False)
        if not least <= count <= most:
            raise ValueError(f"{count} is not from {least} to {most}")
        return count

    return parse


TEXT: Final = Kind("a text", _plain(str), {"type": "string"})
FLAG: Final = Kind("true or false", _plain(bool), {"type": "boolean"})
COUNT: Final = Kind("a whole number", _plain(int), {"type": "integer"})
WORKERS: Final = Kind("a whole number from 0 to 64", _count(0, 64), {"type": "integer", "minimum": 0, "maximum": 64})
REPLICAS: Final = Kind("a whole number from 0 to 9", _count(0, 9), {"type": "integer", "minimum": 0, "maximum": 9})
RATE: Final = Kind("a number", _plain(float), {"type": "number", "minimum": 0})
SIZE: Final = Kind("a size such as 64MB or 1GB", parse_size, {"type": ["string", "integer"]})
DURATION: Final = Kind("a duration such as 200ms, 30s or 1h30m", _duration_ms, {"type": ["string", "number"]})
PORT: Final = Kind("a port from 0 to 65535, or none", _port, {"type": ["integer", "string"]})
BROKERS: Final = Kind(
    "addresses host:port with commas between, or a table of Kafka properties",
    _plain(str),
    {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {name: {} for name in (BOOTSTRAP, *sorted(PROPERTIES))}},
        ]
    },
)
LEVEL: Final = Kind(f"one of {', '.join(LOG_LEVELS)}", _level, {"enum": list(LOG_LEVELS)})


class Spec(NamedTuple):
    """One setting."""

    name: str
    kind: Kind
    default: Any
    """As a person would write it."""
    about: str
    secret: bool = False


SPECS: Final = (
    Spec("app", TEXT, "", "The application: module:name, or a file."),
    Spec("dir", TEXT, ".penstock", "Where state, log and checkpoints lie."),
    Spec("host", TEXT, "127.0.0.1", "What the HTTP interface listens on; a token is required off loopback."),
    Spec("port", PORT, 7070, "Of the HTTP interface; 0 chooses a free one, none serves none."),
    Spec("token", TEXT, "", "What HTTP clients present as 'Authorization: Bearer ...'.", secret=True),
    Spec("memory", SIZE, "1GB", "Bound for caches, write buffers and queues together, of each worker."),
    Spec(
        "parallelism",
        COUNT,
        1,
        f"Number of tasks: a power of two up to 128, fixed for the life of an application; {CLUSTER_PARALLELISM} where "
        "nothing is said on Kafka.",
    ),
    Spec("kafka", BROKERS, "", "Brokers to run on, as host:port,...; none to run on this machine alone."),
    Spec("workers", WORKERS, 0, "Processes here that share the tasks on Kafka; 0 makes this process the one worker."),
    Spec("name", TEXT, "", "What topics begin with, when it is not to be the name that the App has."),
    Spec(
        "store", TEXT, "", "Where checkpoints of workers lie: a directory all reach, or s3://, gs://, az://; DIR/store."
    ),
    Spec("store_endpoint", TEXT, "", "Of an object store of one's own, such as http://minio:9000."),
    Spec("store_region", TEXT, "", "Of the object store."),
    Spec("store_path_style", FLAG, True, "Have the bucket in the path of S3 requests, not in the name of the host."),
    Spec("store_allow_http", FLAG, False, "Accept an object store without TLS."),
    Spec("replicas", REPLICAS, 0, "Of the application's topics; 0: as many as there are brokers, at most 3."),
    Spec("session_timeout", DURATION, "10s", "A worker not heard of for so long is taken for dead, and replaced."),
    Spec("interval", DURATION, "200ms", "Time between checkpoints while there is work."),
    Spec("checkpoint_timeout", DURATION, "60s", "A checkpoint that takes longer is given up."),
    Spec("stop_timeout", DURATION, "30s", "How long an orderly stop may take."),
    Spec("message_bytes_max", SIZE, "1MB", "Largest encoded message or row."),
    Spec("body_bytes_max", SIZE, "2MB", "Largest body of an HTTP request."),
    Spec("requests_per_s_max", RATE, 0, "HTTP messages accepted a second; 0 sets no bound."),
    Spec("idempotency_keep", DURATION, "1d", "How long results are kept for repeats with the same Idempotency-Key."),
    Spec("check_state", FLAG, False, "Read every state back before it is stored; costs some throughput."),
    Spec("retention_all", DURATION, "10m", "Every checkpoint is kept for so long,"),
    Spec("retention_spaced", DURATION, "1h", "then one per retention_spacing for so long."),
    Spec("retention_spacing", DURATION, "1m", "Distance of the checkpoints kept longer."),
    Spec("retention_bytes_max", SIZE, "10GB", "Bound for what the kept checkpoints need; then the oldest is dropped."),
    Spec("log_level", LEVEL, "info", "What is logged."),
    Spec("log_json", FLAG, False, "One JSON object a line instead of text."),
)
_BY_NAME: Final = {spec.name: spec for spec in SPECS}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in force, and where it comes from."""

    name: str
    value: Any
    """Parsed: durations in milliseconds, sizes in bytes."""
    text: str
    """As a person would write it; secrets are not shown."""
    origin: str
    """`default`, `penstock.toml`, `PENSTOCK_MEMORY`, `--memory`."""


class Settings:
    """Every setting with its value and origin. Made by `load_settings`."""

    def __init__(self, settings: Mapping[str, Setting], ignored: Collection[str] = ()) -> None:
        self._settings = settings
        self.ignored = tuple(ignored)
        """Environment variables that look like settings and are none."""

    def __getitem__(self, name: str) -> Any:
        return self._settings[name].value

    def __iter__(self) -> Any:
        return iter(self._settings.values())

    def all(self) -> list[Setting]:
        return list(self._settings.values())

    def origin(self, name: str) -> str:
        return self._settings[name].origin

    def check(self) -> None:
        """Raise ConfigurationError when settings contradict one another."""
        if not self["kafka"]:
            for each in self.all():
                given = each.origin.startswith("--") or each.name == "workers"
                if given and each.value and each.name.startswith(CLUSTER_ONLY):
                    flag = each.origin if each.origin.startswith("--") else f"{each.name} (from {each.origin})"
                    raise ConfigurationError(
                        "PEN0773",
                        f"{flag} is for an application that runs on Kafka, and no brokers are named. "
                        f"Name them with --kafka HOST:PORT, or leave out {flag}.",
                    )
        elif self["workers"] > self["parallelism"]:
            raise ConfigurationError(
                "PEN0774",
                f"workers = {self['workers']} are more than the tasks there are to share: parallelism = "
                f"{self['parallelism']}. Ask for fewer workers, or set parallelism before the first start.",
            )

    def to_config(
        self,
        *,
        directory: Path | None = None,
        until_done: bool = False,
        from_checkpoint: int | None = None,
        fresh: bool = False,
    ) -> Config:
        """The checked configuration of a worker. What belongs to one run alone comes as arguments."""
        return Config(
            directory=directory or Path(self["dir"]),
            parallelism=self["parallelism"],
            memory_bytes=self["memory"],
            interval_ms=self["interval"],
            checkpoint_timeout_ms=self["checkpoint_timeout"],
            message_bytes_max=self["message_bytes_max"],
            idempotency_keep_ms=self["idempotency_keep"],
            check_state=self["check_state"],
            host=self["host"],
            port=self["port"],
            token=self["token"] or None,
            body_bytes_max=self["body_bytes_max"],
            requests_per_s_max=self["requests_per_s_max"],
            until_done=until_done,
            from_checkpoint=from_checkpoint,
            fresh=fresh,
            stop_timeout_ms=self["stop_timeout"],
            retention=Retention(
                all_ms=self["retention_all"],
                spacing_ms=self["retention_spacing"],
                spaced_ms=self["retention_spaced"],
                bytes_max=self["retention_bytes_max"],
            ),
            bucket=self.bucket(),
        )

    def bucket(self) -> BucketOptions:
        """How object stores are reached."""
        return BucketOptions(
            endpoint=self["store_endpoint"] or None,
            region=self["store_region"] or None,
            path_style=self["store_path_style"],
            allow_http=self["store_allow_http"],
        )

    def kafka(self) -> KafkaOptions:
        """How to reach the cluster. Raises ConfigurationError."""
        properties = {
            each.name.removeprefix(PROPERTY_PREFIX): each.value
            for each in self.all()
            if each.name.startswith(PROPERTY_PREFIX)
        }
        return KafkaOptions(self["kafka"], properties)


def load_settings(folder: Path, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """The settings in force in `folder`. `flags` are those given, by name. Raises ConfigurationError."""
    found = {spec.name: _setting(spec, spec.default, "default") for spec in SPECS}
    file, values = _read_file(folder)
    for name, value in values.items():
        spec = _BY_NAME.get(name)
        if spec is None:
            raise _unknown(name, file)
        if spec.kind is BROKERS and isinstance(value, dict):
            found |= _properties(value, file)
        else:
            found[name] = _setting(spec, value, file)
    ignored = []
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NO_SETTINGS:
            setting = _from_environment(variable, text)
            if setting is None:
                ignored.append(variable)
            else:
                found[setting.name] = setting
    for name, value in flags.items():
        if name == "property":
            found |= _properties(dict(_pair(text) for text in value), "--property")
        else:
            found[name] = _setting(_BY_NAME[name], value, f"--{name.replace('_', '-')}")
    if found["kafka"].value and found["parallelism"].origin == "default":
        found["parallelism"] = _setting(_BY_NAME["parallelism"], CLUSTER_PARALLELISM, "default")
    return Settings(found, ignored)


def schema() -> dict[str, Any]:
    """A JSON schema of `penstock.toml`, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "penstock.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            spec.name: {**spec.kind.schema, "description": spec.about}
            | ({} if spec.secret else {"default": spec.default})
            for spec in SPECS
        },
    }


def _properties(table: Mapping[str, Any], origin: str, prefix: str = "") -> dict[str, Setting]:
    """The settings that a table of Kafka properties means: `security.protocol` may be one key, or tables in tables."""
    found: dict[str, Setting] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _properties(value, origin, f"{name}.")
        elif name == BOOTSTRAP:
            found["kafka"] = _setting(_BY_NAME["kafka"], value, origin)
        else:
            found[f"{PROPERTY_PREFIX}{name}"] = _property(name, value, origin)
    return found


def _property(name: str, value: Any, origin: str) -> Setting:
    if name not in PROPERTIES:
        raise unknown_property(name)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Setting(f"{PROPERTY_PREFIX}{name}", text, redacted(name, text), origin)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        # What stands there may be a secret.
        raise ConfigurationError("PEN0152", "A --property has no '='. Give NAME=VALUE, under Kafka's own name.")
    return name.strip(), value


def _from_environment(variable: str, text: str) -> Setting | None:
    """What a variable sets; None when it is no setting. A service of the name Kafka gets variables from Kubernetes that
    look like ours, so that a property which does not exist is no error here."""
    name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    spec = _BY_NAME.get(name)
    if spec is not None:
        return _setting(spec, text, variable)
    property = name.replace("_", ".").removeprefix(PROPERTY_PREFIX)
    if name.startswith("kafka_") and property in PROPERTIES:
        return _property(property, text, variable)
    return None


def _read_file(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The file that holds settings, and what it says. A `penstock.toml` wins over `pyproject.toml`."""
    own = folder / "penstock.toml"
    if own.exists():
        return own.name, _read_toml(own)
    project = folder / "pyproject.toml"
    if project.exists():
        section = _read_toml(project).get("tool", {}).get("penstock", {})
        return project.name, section if isinstance(section, dict) else {}
    return "", {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError("PEN0151", f"{path} can't be read: {error}. Correct it, and start again.") from error


def _setting(spec: Spec, value: Any, origin: str) -> Setting:
    try:
        parsed = spec.kind.parse(value)
    except (ConfigurationError, msgspec.ValidationError, ValueError) as error:
        shown = REDACTED if spec.secret else repr(value)
        raise ConfigurationError(
            "PEN0152", f"{spec.name} = {shown} (from {origin}) is not acceptable. Give {spec.kind.what}."
        ) from error
    return Setting(spec.name, parsed, _shown(spec, parsed), origin)


def _shown(spec: Spec, value: Any) -> str:
    if spec.secret:
        return REDACTED if value else ""
    if spec.kind is SIZE:
        return format_size(value)
    if spec.kind is DURATION:
        return format_duration(value)
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str, file: str) -> ConfigurationError:
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    hint = f"Did you mean {near[0]}?" if near else "Remove it."
    return ConfigurationError(
        "PEN0153", f"{file} sets {name}, which is no setting. {hint} All are listed by: penstock config show."
    )
