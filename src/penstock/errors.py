"""The exceptions of Penstock: named by what the person or program that catches one should do.

    PenstockError
    ├── ConfigurationError     fix the application or its configuration, then start again
    ├── Refused                the operation would lose or corrupt data; nothing was changed
    ├── InvalidInput           one record, request or value is not acceptable; everything else goes on
    │   └── DecodeError        its bytes do not fit the declared type (carries path, expected, got)
    ├── FunctionError          user code raised; carries the address
    │   ├── CallTimeout        a call was not answered in time (a TimeoutError, too)
    │   ├── CallUnavailable    a call could not be carried out for now (an Unavailable, too)
    │   └── StepFailed         a step of a saga was refused or failed; what was done is undone
    ├── Unavailable            something outside does not answer; try again later
    ├── Fenced                 this process was replaced; it must stop now
    ├── CorruptSnapshot        a checkpoint's bytes are damaged; use an older checkpoint
    └── ProtocolError          a peer, or stored data, broke the rules of the protocol

Every error has a code (`PEN0201`), whose page `penstock explain PEN0201` prints. The first line of a message is
enough by itself: what happened, where, the value that surprised us, and what to do next. Mistakes of our own are
`assert`ed, and never caught.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base of everything Penstock raises on purpose. `code` is stable and can be looked up by `penstock explain`."""

    code: str
    message: str

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class ConfigurationError(PenstockError):
    """The application or its configuration contradicts itself: fix it and start again."""


class Refused(PenstockError):
    """The operation would have lost or corrupted data, so it was not begun: nothing was changed."""


class InvalidInput(PenstockError):
    """One record, request or value is not acceptable. It is refused or dead-lettered; nothing else is affected."""


class DecodeError(InvalidInput):
    """Bytes do not fit the declared type. `path` is where in the value (`$.dep_delay`), then what was expected and
    got."""

    def __init__(self, code: str, message: str, *, path: str = "$", expected: str = "", got: str = "") -> None:
        super().__init__(code, message)
        self.path = path
        self.expected = expected
        self.got = got


class FunctionError(PenstockError):
    """User code raised. `address` names the function instance, as `namespace/name/id`."""

    def __init__(self, code: str, message: str, *, address: str = "") -> None:
        super().__init__(code, message)
        self.address = address


class CallTimeout(FunctionError, TimeoutError):
    """A call had no answer when its time was over. What was called may have been done all the same."""


class StepFailed(FunctionError):
    """A step of a saga was refused, failed, or did not answer. A saga that does not catch it is undone. `step` is its
    name."""

    def __init__(self, code: str, message: str, *, address: str = "", step: str = "") -> None:
        super().__init__(code, message, address=address)
        self.step = step


class Unavailable(PenstockError):
    """Something outside this process does not answer: try again later."""


class CallUnavailable(FunctionError, Unavailable):
    """A call could not be carried out: whoever was called, or the way there, does not answer. It may have been done all
    the same; tried again under its key, it is not done twice."""


class Fenced(PenstockError):
    """This process was replaced by another, or its directory is owned by another: it must stop now."""


class CorruptSnapshot(PenstockError):
    """The bytes of a checkpoint are damaged. The next older one on the lineage is to be used, loudly."""


class ProtocolError(PenstockError):
    """A peer, or data read back from storage, broke the rules of the protocol: stop rather than guess."""
