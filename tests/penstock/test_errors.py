"""Every error has a code, reads as one line, and says by its class what to do."""

from __future__ import annotations

import pickle

import pytest

from penstock import errors
from penstock.errors import DecodeError, FunctionError, InvalidInput, PenstockError

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PenstockError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_reads_as_its_code_and_its_message(cls: type[PenstockError]) -> None:
    error = cls("PEN0999", "What happened, and what to do.")

    assert str(error) == "PEN0999 What happened, and what to do."
    assert (error.code, error.message) == ("PEN0999", "What happened, and what to do.")


def test_every_class_stands_in_the_drawing() -> None:
    assert errors.__doc__ is not None
    for cls in CLASSES:
        assert f" {cls.__name__} " in errors.__doc__ or f"{cls.__name__}\n" in errors.__doc__
        assert cls.__doc__


def test_a_decode_error_says_where_and_is_invalid_input() -> None:
    error = DecodeError("PEN0201", "No.", path="$.delay", expected="float", got='str "late"')

    assert isinstance(error, InvalidInput)
    assert (error.path, error.expected, error.got) == ("$.delay", "float", 'str "late"')


def test_an_error_of_a_function_names_its_address() -> None:
    assert FunctionError("PEN0210", "No.", address="t/f/a").address == "t/f/a"


def test_errors_cross_processes() -> None:
    copy = pickle.loads(pickle.dumps(PenstockError("PEN0999", "No.")))

    assert (type(copy), str(copy)) == (PenstockError, "PEN0999 No.")
