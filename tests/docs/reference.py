"""Makes the reference pages from the code they describe, so that they can't disagree with it.

    python -m tests.docs.reference      writes the pages; a test compares them with what stands here

Signatures and docstrings are read from the source as its author wrote them. `errors.md` comes from the catalogue of
error codes, and the HTTP interface is described by hand: neither is made here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Final

import click
from prometheus_client.metrics_core import Metric

import penstock
from penstock import faults
from penstock.engine import settings
from penstock.engine.cli import VERBS, cli
from penstock.engine.config import Config
from penstock.engine.metrics import SAGAS_READ_MAX, Metrics
from penstock.engine.serving import SharedStatistics
from penstock.engine.worker import Worker
from penstock.functions.function import DEFAULT_OPTIONS
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.node import Node
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.registry import LocalRegistry
from penstock.mesh.sqlite_store import SqliteStore
from penstock.saga_figures import saga_figures
from tests.docs.pages import DOCS
from tests.engine.serving import until

REFERENCE: Final = DOCS / "reference"

MODULES: Final = (
    (
        "Declaring an application",
        "penstock",
        ("App", "Ingress", "Egress", "Function", "Context", "MessageInfo", "Address"),
    ),
    ("Messages and state", "penstock", ("Message", "State", "Table", "Log", "Expire", "Value")),
    ("Awaiting", "penstock", ("Durable", "Retry")),
    (
        "Sagas",
        "penstock",
        (
            "Saga",
            "Step",
            "Completed",
            "Compensated",
            "SagaAlert",
            "Participant",
            "FencedState",
            "Action",
            "Declined",
            "Branch",
        ),
    ),
    ("Schedules", "penstock", ("Schedule", "Scheduled")),
    ("Ingresses", "penstock", ("FileIngress", "KafkaIngress", "GeneratorIngress", "MemoryIngress")),
    (
        "Egresses",
        "penstock",
        ("FileEgress", "KafkaEgress", "PostgresEgress", "HttpEgress", "StdoutEgress", "MemoryEgress"),
    ),
    (
        "Formats of records",
        "penstock",
        ("Format", "Msgpack", "Json", "Raw", "Avro", "Protobuf", "JsonSchema", "CloudEvents", "SchemaRegistry"),
    ),
    (
        "Errors",
        "penstock",
        (
            "PenstockError",
            "ConfigurationError",
            "Refused",
            "InvalidInput",
            "DecodeError",
            "FunctionError",
            "CallTimeout",
            "CallUnavailable",
            "StepFailed",
            "Unavailable",
            "Fenced",
            "CorruptSnapshot",
            "ProtocolError",
        ),
    ),
    ("Running an application from a program", "penstock.engine.run", ("run",)),
    ("The mesh in a program", "penstock.mesh.library", ("Mesh",)),
    ("Policies played through", "penstock.mesh.rehearsal", ("Rehearsal", "Played", "Arrived")),
    ("Its configuration", "penstock.engine.config", ("Config",)),
    ("Testing", "penstock.testing", ("Harness", "Trial", "DelayedMessage")),
    (
        "Faults for tests",
        "penstock.testing",
        ("Crash", "SlowSink", "FailingSink", "Repeats", "ClockJumps"),
    ),
    ("What a harness tells of dead letters", "penstock.engine.effects", ("DeadLetter",)),
    ("The fixture of the pytest plugin", "penstock.pytest_plugin", ("penstock_harness",)),
)
"""Everything public: a heading, the module to import from, and its names."""

_DEFAULT_OPTION: Final = re.compile(r"DEFAULT_OPTIONS\.(\w+)")

INTERNAL: Final = {
    "App": ("check", "fingerprints"),
    "Context": ("outputs", "storage"),
    "Table": ("bound", "flush"),
    "Log": ("bound",),
    "Function": (
        "from_handler",
        "resolve",
        "types",
        "is_async",
        "message_codec",
        "reply_codec",
        "state",
        "state_codec",
        "storage",
        "fingerprint",
        "state_shape",
        "state_incompatibilities",
    ),
    "Branch": ("trail",),
    "FencedState": ("fence_rows", "fence_decided"),
    "Participant": ("types", "is_async", "fingerprint", "checked", "resolve", "decide"),
    "Action": ("typename", "message_codec", "answer_codec", "handlers"),
    "Expire": ("ttl_ms", "after_call"),
    "FileEgress": ("encode", "part_header"),
    "PostgresEgress": ("encode",),
    "HttpEgress": ("encode",),
    "StdoutEgress": ("encode",),
    "MemoryEgress": ("encode",),
    **dict.fromkeys(
        ("Format", "Msgpack", "Json", "Raw", "Avro", "Protobuf", "JsonSchema", "CloudEvents"),
        ("encode", "content_type"),
    ),
    "Config": ("cache_bytes", "store_bytes", "pending_bytes"),
    "DeadLetter": ("payload", "cause", "state"),
}
"""Attributes that the engine uses and users don't."""

BOUND: Final = {
    "Context": (
        ("id: str", "The id of this address: which instance of its function runs."),
        ("storage: Storage", "The named values of a function declared with `storage`, the dynamic form of state."),
    ),
}
"""Attributes that the engine sets, so that no declaration in the class shows them."""


# The API.


def api_page() -> str:
    """docs/reference/api.md."""
    parts = [
        "# The Python API",
        "",
        "Everything an application needs, by the module it is imported from. What is not on this page may change",
        'without notice. Durations are seconds, a `timedelta`, or text such as `"200ms"`, `"1h30m"`, `"30d"`.',
        "",
    ]
    for heading, module, names in MODULES:
        parts += [f"## {heading}", ""]
        for name in names:
            parts += _entry(module, name)
    return "\n".join(parts).rstrip() + "\n"


def _entry(module: str, name: str) -> Iterator[str]:
    value = getattr(import_module(module), name)
    value = getattr(value, "_get_wrapped_function", lambda: value)()  # A fixture of pytest.
    node = ast.parse(dedent(inspect.getsource(value))).body[0]
    yield from (f"### `{name}`", "", "```text", f"from {module} import {name}", "")
    if isinstance(node, ast.ClassDef):
        yield from _class_lines(node)
    else:
        assert isinstance(node, ast.FunctionDef)
        yield _signature(node)
    module_text = inspect.getdoc(import_module(module)) or ""
    yield from ("```", "", _docstring(node).replace("See the module. ", f"{module_text}\n\n"), "")
    if isinstance(node, ast.ClassDef):
        members = [*BOUND.get(node.name, ()), *_members(node)]
        yield from (f"- `{shown}`{f': {_in_one_line(text)}' if text else ''}" for shown, text in members)
        if members:
            yield ""


def _class_lines(node: ast.ClassDef) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"class {node.name}({bases})" if bases else f"class {node.name}"
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if init is not None and node.name not in (
        "Context",
        "Function",
        "Ingress",
        "Egress",
        "MessageInfo",
        "Durable",
        "Saga",
        "Step",
        "Participant",
        "Action",
    ):
        yield f"    {node.name}{_arguments(init)}"


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Fields and public methods, each with what its docstring says."""
    hidden = INTERNAL.get(node.name, ())
    for number, each in enumerate(node.body):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            name = each.target.id
            if not name.startswith("_") and name not in hidden and "init=False" not in ast.unparse(each):
                default = f" = {ast.unparse(each.value)}" if each.value is not None else ""
                yield f"{name}: {ast.unparse(each.annotation)}{default}", _text_behind(node.body, number)
        elif isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and each.name not in hidden:
            decorators = {ast.unparse(decorator) for decorator in each.decorator_list}
            if "overload" in decorators or not _docstring(each):
                continue
            is_property = decorators & {"property", "cached_property"}
            shown = f"{each.name}{_answer(each, ': ')}" if is_property else f"{each.name}{_arguments(each)}"
            yield shown, _docstring(each)


def _signature(node: ast.FunctionDef) -> str:
    return f"{node.name}{_arguments(node)}"


def _arguments(node: ast.FunctionDef) -> str:
    given = node.args
    for parameters in (given.posonlyargs, given.args):
        if parameters and parameters[0].arg in ("self", "cls"):
            parameters.pop(0)
    text = _DEFAULT_OPTION.sub(lambda match: repr(getattr(DEFAULT_OPTIONS, match[1])), ast.unparse(given))
    return f"({text}){_answer(node, ' -> ') if node.name != '__init__' else ''}"


def _answer(node: ast.FunctionDef, before: str) -> str:
    return f"{before}{ast.unparse(node.returns)}" if node.returns is not None else ""


def _text_behind(body: Sequence[ast.stmt], number: int) -> str:
    """The docstring behind a field."""
    following = body[number + 1] if number + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return inspect.cleandoc(str(following.value.value))
    return ""


def _docstring(node: ast.AST) -> str:
    return (ast.get_docstring(node) or "") if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


# The command line.


def cli_page() -> str:
    """docs/reference/cli.md: the help of every verb."""
    parts = [
        "# The command line",
        "",
        "Verbs that read ask the running application, or read the directory of a stopped one; verbs that change",
        "something need it running. Verbs that destroy or repeat something say what they would do, and do it with",
        "`--yes`.",
        "",
        "| exit code | means |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _exit_codes()),
        "",
    ]
    for command in _commands():
        parts += [f"## {' '.join(command)}", "", "```text", _help(command), "```", ""]
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> Iterator[tuple[str, str]]:
    """From the line of the module that says them."""
    module = inspect.getdoc(import_module("penstock.engine.cli")) or ""
    line = next(line for line in module.splitlines() if line.strip().startswith("exit code"))
    for part in line.strip().removeprefix("exit code").split("   "):
        if part.strip():
            code, _, meaning = part.strip().partition(" ")
            yield code, meaning


def _commands() -> Iterator[tuple[str, ...]]:
    yield ("penstock",)
    with click.Context(cli) as context:
        for verb in VERBS:
            yield from _with_those_below(("penstock", verb), cli.get_command(context, verb))


def _with_those_below(path: tuple[str, ...], command: click.Command | None) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in sorted(command.list_commands(context)):
                yield from _with_those_below((*path, name), command.get_command(context, name))


def _help(command: tuple[str, ...]) -> str:
    found: click.Command = cli
    context = click.Context(cli, info_name="penstock", terminal_width=78)
    for name in command[1:]:
        assert isinstance(found, click.Group)
        below = found.get_command(context, name)
        assert below is not None
        found = below
        context = click.Context(found, info_name=name, parent=context, terminal_width=78)
        context.help_option_names = ["-h", "--help"]
    context.help_option_names = ["-h", "--help"]
    return "\n".join(line.rstrip() for line in found.get_help(context).splitlines())


# Settings.


def settings_page() -> str:
    """docs/reference/configuration.md."""
    rows = [
        f"| `{spec.name}` | {spec.kind.what} | {f'`{_shown(spec)}`' if _shown(spec) else 'none'} | {spec.about} |"
        for spec in settings.SPECS
    ]
    return f"""# Configuration

Every setting has one name. Its value comes from the first of these that has it:

1. a flag of `penstock run` and `penstock replay`, where there is one: `--memory 2GB`;
2. the environment, with the prefix `PENSTOCK_`: `PENSTOCK_MEMORY=2GB`;
3. `penstock.toml` in the folder the command runs in or, if there is no such file, `[tool.penstock]` in
   `pyproject.toml`;
4. the default.

`penstock config show` prints every setting with its value and where it comes from. `penstock config schema` prints a
JSON schema for editors. A name that is no setting is an error in a file; in the environment it is ignored, with a
warning.

```toml title="penstock.toml"
app = "shop.main:app"
memory = "2GB"
interval = "500ms"
retention_all = "30m"
```

Sizes are powers of 1,024. Durations may be combined (`1h30m`); a plain number is seconds.

| setting | is | default | for |
|---|---|---|---|
{chr(10).join(rows)}

What belongs to one run alone is a flag and no setting: `--until-done`, `--from`, `--ephemeral`. A program that runs an
application itself passes a [`Config`](api.md#config) instead, whose fields are in milliseconds and bytes.

The variable `PENSTOCK_FAULT` is no setting either: it makes a process die, for a test ([Faults](faults.md)).
"""


def _shown(spec: settings.Spec) -> str:
    return str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)


# Faults.


def faults_page() -> str:
    """docs/reference/faults.md."""
    rows = [f"| `{point}` | {what[0].upper()}{what[1:]}. |" for point, what in faults.POINTS.items()]
    return f"""# Faults

`{faults.FAULT_VARIABLE}` names moments at which a process of `penstock run` or `penstock replay` dies, stands still or
raises, so that one can see what becomes of an application then
([Try what a crash does](../how-to/try-crashes.md)). Without it a point costs about 50 nanoseconds, and none is passed
for each message.

```text
{faults.FAULT_VARIABLE}=point:count:action,...
{faults.FAULT_VARIABLE}=process/point:count:action,...
```

- `point` is one of those below. One that does not exist is refused at the start (PEN0159).
- `count`: the fault strikes the n-th time that the process comes past the point, and once.
- `action` is `kill` (SIGKILL, the process has no time for anything), `hang` (SIGSTOP: it stands still until somebody
  sends SIGCONT or kills it) or `raise` (an exception, as if there were a mistake in the code).
- `process` is `worker`, `leader` or `supervisor`, or one of several workers: `worker-0`. Without it every process is
  concerned, each for itself. On one machine, and where a worker on Kafka has no supervisor, there are only workers.

A supervisor (`--workers`) starts a process again that has died; the new one has no faults. What strikes says so on
standard error before: `{faults.FAULT_VARIABLE}: worker-0 at settle.told, for the 3. time: kill`.

A program that runs an application itself calls `penstock.faults.arm("settle.told:3:kill")`, at any time.

| point | what is true there |
|---|---|
{chr(10).join(rows)}
"""


# Metrics.


def metrics_page(metrics: Sequence[Metric], of_mesh: Sequence[Metric]) -> str:
    """docs/reference/metrics.md, of the metrics that a running application exports, and a process of a mesh."""
    rows, mesh_rows, saga_rows = map(_metric_rows, (metrics, of_mesh, list(saga_figures([], 0))))
    return f"""# Metrics

`GET /metrics` answers in the text format of Prometheus. Figures are read from counters the engine keeps anyway; a
scrape costs nothing per message. Counters begin at zero with each start of the process. Labels never hold an id.

| metric | type | labels | tells |
|---|---|---|---|
{chr(10).join(rows)}

A summary is exported as `..._sum` and `..._count`. What to watch and when to raise an alarm is in
[Operate an application](../how-to/operate.md).

## In the mesh

The gateway and every host of `penstock mesh` answer `GET /metrics` for themselves: `source` and `destination` are
functions, and `outside` is who is none. A call counts once, however often it was tried: the effective success rate is
that of calls, the actual one that of attempts. A mesh that retries looks healthy in the first and not in the second.

| metric | type | labels | tells |
|---|---|---|---|
{chr(10).join(mesh_rows)}

A histogram is exported as `..._bucket`, `..._sum` and `..._count`. Names that begin with `upstream_rq_` and
`outlier_detection_` are Envoy's.

## Sagas

An application with sagas has these in either runtime. In the mesh each host tells of the sagas that it carries out; one
whose host was killed is seen again when another goes on with it, within a minute. Of each function and task, the first
{SAGAS_READ_MAX:,} are looked at.

| metric | type | labels | tells |
|---|---|---|---|
{chr(10).join(saga_rows)}

[Which they are](../how-to/sagas.md#look-after-them), and what they do not get over, says `penstock saga list`.
"""


def _metric_rows(metrics: Sequence[Metric]) -> list[str]:
    return [
        f"| `{_exported(each)}` | {each.type} | {', '.join(f'`{label}`' for label in _labels(each)) or '-'} | "
        f"{each.documentation} |"
        for each in metrics
    ]


def _exported(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _labels(metric: Metric) -> Sequence[str]:
    labels: Sequence[str] = getattr(metric, "_labelnames", ())
    return labels


def collected_metrics(directory: Path) -> list[Metric]:
    """Those of an application that has everything that can be measured."""
    app = penstock.App("metrics")
    entry = penstock.MemoryIngress()

    @app.function("metrics/one")
    def one(ctx: penstock.Context[None], message: int) -> None:
        ctx.emit("metrics/out", message)

    app.ingress(entry, to=one, key=str)
    app.egress("metrics/out", penstock.MemoryEgress())
    entry.feed(1)
    found: list[Metric] = []

    async def watch(worker: Worker) -> None:
        await until(lambda: worker.last_checkpoint is not None)
        worker.shared = SharedStatistics("", 0, "", False, 0.0, (), (), (), False, {}, *[0] * 7)
        found.extend(Metrics(worker).collect())
        worker.stop()

    async def run() -> None:
        worker = Worker(app, Config(directory=directory, port=None))
        async with asyncio.TaskGroup() as both:
            both.create_task(watch(worker))
            both.create_task(worker.run())

    asyncio.run(run())
    return found


def collected_mesh_metrics(directory: Path) -> list[Metric]:
    """Those of a host, which also calls."""
    app = penstock.App("metrics")
    policies = Policies(PolicySet(), draw=lambda: 0.5)

    async def run() -> list[Metric]:
        registry, store = LocalRegistry(), SqliteStore(directory)
        node = Node(app, store, registry, policies)
        await node.start()
        found = list(MeshMetrics(app.name, node.edges, policies, node.host, node.background).collect())
        await node.close()
        await store.close()
        return found[1:]  # What was built is told by both runtimes.

    return asyncio.run(run())


def pages(scratch: Path) -> dict[Path, Callable[[], str]]:
    """Every page that is made here."""
    return {
        REFERENCE / "api.md": api_page,
        REFERENCE / "cli.md": cli_page,
        REFERENCE / "configuration.md": settings_page,
        REFERENCE / "faults.md": faults_page,
        REFERENCE / "metrics.md": lambda: metrics_page(
            collected_metrics(scratch), collected_mesh_metrics(scratch / "mesh")
        ),
    }


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        for path, make in pages(Path(folder) / "data").items():
            path.write_text(make(), encoding="utf-8")
