"""`penstock send` and `penstock call`: a message from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from penstock.engine.cli_common import Where, where_options
from penstock.output import output_options, parse_json, print_json


def _message_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--key", default="", metavar="KEY", help="Idempotency-Key: repeats have no effect.")(
        function
    )
    function = click.argument("message", default="null", metavar="[JSON]")(function)
    function = click.argument("id")(function)
    return click.argument("typename", metavar="FUNCTION")(function)


@click.command()
@_message_options
@where_options
@output_options
def send(where: Where, typename: str, id: str, message: str, key: str, as_json: bool) -> None:
    """Send a message to an address.

    Returns when the message is durable. JSON is read from standard input if it is '-'.
    """
    body = json.dumps(parse_json(message, "The message")).encode()
    answer = where.need_running("sending").send(typename, id, body, idempotency_key=key)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"accepted by {typename} {id}")


@click.command()
@_message_options
@click.option("--timeout", default="", metavar="TIME", help="How long to wait for the answer, such as 5s.")
@where_options
@output_options
def call(where: Where, typename: str, id: str, message: str, key: str, timeout: str, as_json: bool) -> None:
    """Send a message to an address and print the answer.

    The answer is JSON, and can't be rolled back any more when it is printed.
    """
    body = json.dumps(parse_json(message, "The message")).encode()
    answer = where.need_running("calling").call(typename, id, body, timeout=timeout, idempotency_key=key)
    if as_json:
        print_json(answer)
    else:
        click.echo(json.dumps(answer, ensure_ascii=False))
