"""What the verbs about a streaming application share: the options that say which one, and ways to reach it.

A reading verb asks the running application if there is one (the lock of its directory tells where it answers), and else
reads the directory of the stopped one. A changing verb needs it running.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from penstock.errors import Unavailable
from penstock.output import note, print_fields, print_json, print_table

if TYPE_CHECKING:
    from penstock.checkpoint.recovery import History
    from penstock.checkpoint.retention import Retained
    from penstock.engine.client import Client
    from penstock.engine.cluster.saved import KafkaCheckpoints
    from penstock.engine.offline import Checkpoints, Directory, StoppedApplication, StoppedCheckpoints
    from penstock.engine.settings import Settings
    from penstock.functions.app import App


DIFFERENCES = 5
"""The exit code of verbs that compare, when they found some."""
URL_VARIABLE = "PENSTOCK_URL"
"""Stands for --url, unless a verb is given a directory."""


class Where:
    """Which application a verb is about: what --app, --dir and --url say, completed by the settings."""

    def __init__(self, app: str | None, directory: str | None, url: str | None) -> None:
        self._flags = {name: value for name, value in (("app", app), ("dir", directory)) if value is not None}
        self._url = url or (os.environ.get(URL_VARIABLE) if directory is None else None)

    @functools.cached_property
    def settings(self) -> Settings:
        from penstock.engine.settings import load_settings

        return load_settings(Path.cwd(), os.environ, self._flags)

    @property
    def directory(self) -> Path:
        return Path(self.settings["dir"])

    @property
    def remote(self) -> bool:
        """Whether only a URL is known, so that nothing can be read from files."""
        return self._url is not None

    def running(self) -> Client | None:
        """A client of the application, or of the mesh that has its folder there, or None when neither runs."""
        from penstock.engine.client import Client
        from penstock.files import MESH_FOLDER, read_owner

        if self._url is not None:
            return Client(self._url, self.settings["token"])
        owner = read_owner(self.directory) or read_owner(self.directory / MESH_FOLDER)
        if owner is None:
            return None
        if owner.url is None:
            raise Unavailable(
                "PEN0624",
                f"The application in {self.directory} runs as process {owner.pid} ({owner.command}) and can't be "
                "asked: it is starting, or serves no HTTP. Wait, or start it with a port.",
            )
        return Client(owner.url, self.settings["token"])

    def need_running(self, what: str) -> Client:
        """The same for a verb that changes something."""
        client = self.running()
        if client is None:
            raise Unavailable(
                "PEN0623",
                f"No application runs in {self.directory}, and {what} needs a running one. Start it: penstock run.",
            )
        return client

    def opened(self) -> Directory:
        """The directory, to be read as it lies."""
        from penstock.engine.offline import Directory

        return Directory(self.directory)

    @contextmanager
    def reading(self, *numbers: int) -> Iterator[Checkpoints]:
        """These checkpoints, or the newest, as they lie in the directory or, if the settings say so, on Kafka.

        Also of a running application.
        """
        if not self.settings["kafka"]:
            with self.opened() as directory:
                yield directory
            return
        import asyncio

        found = self.topics()
        asyncio.run(found.load(numbers))
        yield found

    def topics(self) -> KafkaCheckpoints:
        """The checkpoints of an application on Kafka, to be loaded."""
        return topics_of(self.app().name, self.settings, self.directory)

    def app(self) -> App:
        """The application that the settings name."""
        from penstock.loading import load_app

        return load_app(self.settings["app"], Path.cwd(), name=self.settings["name"]).app

    @contextmanager
    def checkpoints(self, *numbers: int) -> Iterator[Client | StoppedCheckpoints]:
        """Whoever can tell of these checkpoints, or of all: the running application, or what it left behind."""
        client = self.running()
        if client is not None:
            yield client
            return
        from penstock.engine.offline import StoppedCheckpoints

        with self.reading(*numbers) as found:
            yield StoppedCheckpoints(found)

    @contextmanager
    def reader(self, *, at: int | None = None) -> Iterator[Client | StoppedApplication]:
        """Whoever can answer: the running application, or its newest checkpoint, or checkpoint `at`."""
        client = None if at is not None else self.running()
        if client is not None:
            yield client
            return
        from penstock.engine.offline import open_stopped

        with (
            self.reading(*(() if at is None else (at,))) as checkpoints,
            open_stopped(self.app(), checkpoints, checkpoint=at, note=note) as stopped,
        ):
            yield stopped


def topics_of(name: str, settings: Settings, directory: Path) -> KafkaCheckpoints:
    """The checkpoints of the application of that name on Kafka, to be loaded."""
    from penstock.checkpoint.stores import open_store
    from penstock.engine.cluster.options import cluster_options
    from penstock.engine.cluster.saved import KafkaCheckpoints

    silence_kafka_client()
    cluster = cluster_options(settings, directory)
    store = open_store(cluster.store, cluster.store_options)
    return KafkaCheckpoints(cluster.kafka, name, store, directory)


def where_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --app, --dir and --url, as one argument `where`."""

    @click.option("--app", metavar="MODULE:APP", help="The application, or its file.")
    @click.option("--dir", "directory", metavar="DIR", help="Its data directory.")
    @click.option("--url", metavar="URL", help="Where it answers, if not on this machine; or PENSTOCK_URL.")
    @functools.wraps(function)
    def with_where(app: str | None, directory: str | None, url: str | None, **arguments: Any) -> Any:
        return function(where=Where(app, directory, url), **arguments)

    return with_where


def kafka_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --kafka and --property, as one argument `kafka`. What is not given is as in the settings."""

    @click.option("--kafka", "brokers", metavar="BROKERS", help="Addresses of brokers, host:port,..., if not as set.")
    @click.option(
        "--property",
        "properties",
        multiple=True,
        metavar="NAME=VALUE",
        help="A property of Kafka clients, such as security.protocol=SASL_SSL. Can be given several times.",
    )
    @functools.wraps(function)
    def with_kafka(brokers: str | None, properties: Sequence[str], **arguments: Any) -> Any:
        from penstock.engine.settings import load_settings

        given = {name: value for name, value in (("kafka", brokers), ("property", properties)) if value}
        settings = load_settings(Path.cwd(), os.environ, given)
        if not settings["kafka"]:
            raise click.UsageError("Missing option '--kafka'. The settings name no brokers either.")
        silence_kafka_client()
        return function(kafka=settings.kafka(), **arguments)

    return with_kafka


def silence_kafka_client() -> None:
    """What aiokafka would log to standard error is told by our errors, which say what to do."""
    import logging

    logging.getLogger("aiokafka").addHandler(logging.NullHandler())


class Named(NamedTuple):
    """Which application in a Kafka cluster is meant."""

    name: str | None
    app: App | None
    """Itself, when it was said by --app."""


def name_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --name and --app, as one argument `named`."""

    @click.option("--name", metavar="APP", help="The name of the application, which its topics begin with.")
    @click.option("--app", "target", metavar="MODULE:APP", help="The application, or its file: it has a name.")
    @functools.wraps(function)
    def with_name(name: str | None, target: str | None, **arguments: Any) -> Any:
        from penstock.engine.settings import load_settings
        from penstock.functions.app import App
        from penstock.loading import load_app

        app = None
        if target is not None:
            # It runs under the name that the settings give it: that of the App may be another application's.
            name = name or load_settings(Path.cwd(), os.environ, {})["name"]
            app = load_app(target, Path.cwd(), name=name).app
            name = app.name
        elif name is not None:
            name = App(name).name  # Which refuses what can't be a name.
        return function(named=Named(name, app), **arguments)

    return with_name


def print_with_tasks(found: Mapping[str, Any], columns: Sequence[str], *, as_json: bool) -> None:
    """What is known of a checkpoint or a savepoint, and a table of its tasks with these columns."""
    if as_json:
        print_json(found)
        return
    print_fields({name: value for name, value in found.items() if name != "tasks"})
    click.echo()
    print_table(found["tasks"], columns, empty="")


def print_replay(app: str, history: History, chosen: Retained) -> None:
    """What a replay of `app` from a checkpoint would mean."""
    newest = next(history.candidates(), None)
    later = [number for number in history.checkpoints if number > chosen.checkpoint]
    click.echo(f"{app} would continue from checkpoint {chosen.checkpoint:,} ({chosen.reason}), instead of", nl=False)
    click.echo(f" {newest.checkpoint:,}." if newest is not None else " from nothing.")
    click.echo(f"What {len(later):,} later checkpoints contain would be processed again, and its rows written again.")
    click.echo("Add --yes to do it.")
