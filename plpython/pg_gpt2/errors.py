"""Errors that a user can cause: a message naming the thing and the value, a SQLSTATE, a HINT.

`server.sql_errors` turns them into PostgreSQL errors. Anything else that escapes is a defect of ours, except for what the
operating system refuses (`of_system`).
"""

import errno
import json

MOST_SHOWN = 60  # characters of a value in a message


class PgGpt2Error(Exception):
    """Base of all errors with a SQLSTATE. `hint` says what to do; `detail` adds facts."""

    sqlstate = "XX000"

    def __init__(self, message: str, *, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class InvalidParameter(PgGpt2Error):
    """A value outside its domain."""

    sqlstate = "22023"


class NullNotAllowed(PgGpt2Error):
    """NULL where it has no meaning."""

    sqlstate = "22004"


class InvalidRegularExpression(PgGpt2Error):
    """A pattern that cannot be read, or that is no regular one."""

    sqlstate = "2201B"


class MalformedData(PgGpt2Error):
    """A file or a byte string that is not what it claims to be."""

    sqlstate = "22P02"


class InconsistentData(PgGpt2Error):
    """Stored rows or imported tensors that do not fit the model's configuration."""

    sqlstate = "22000"


def shown(value: object) -> str:
    """A value for a message, as JSON has it but for NaN and infinity; not too much of it."""
    try:
        text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError):
        text = "a list in lists"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def require(**values: object) -> None:
    """Refuse (22004) the first value that is null, by its name. Annotations say what a function works with; SQL may pass NULL."""
    for name, value in values.items():
        if value is None:
            raise NullNotAllowed(f"{name} must not be null", hint="Leave it out to get its default, where it has one.")


def require_positive(**values: int) -> None:
    """Refuse the first value that is null (22004) or below 1 (22023), by its name."""
    require(**values)
    for name, value in values.items():
        if value < 1:
            raise InvalidParameter(f"{name} must be 1 or more, not {value}", hint=f"Example: {name} => 8.")


class Diverged(PgGpt2Error):
    """The loss or a gradient is no longer a finite number."""

    sqlstate = "22003"


class UndefinedObject(PgGpt2Error):
    """An unknown model, tensor, checkpoint or run."""

    sqlstate = "42704"


class DuplicateObject(PgGpt2Error):
    """A name that is taken."""

    sqlstate = "42710"


class WrongState(PgGpt2Error):
    """The object exists but cannot do this now, such as a model without weights."""

    sqlstate = "55000"


class StillUsed(PgGpt2Error):
    """What other models are made of cannot go away under them."""

    sqlstate = "2BP01"


class LockNotAvailable(PgGpt2Error):
    """Another session holds what is needed."""

    sqlstate = "55P03"


class InvalidTransactionTermination(PgGpt2Error):
    """A procedure that commits, called where it cannot."""

    sqlstate = "2D000"


class TriggerProtocolViolated(PgGpt2Error):
    """A trigger function of ours that somebody put on a table of their own."""

    sqlstate = "39P01"


class InsufficientPrivilege(PgGpt2Error):
    """The caller lacks a role or a privilege."""

    sqlstate = "42501"


class ConnectionFailed(PgGpt2Error):
    """Another server that cannot be reached, or refuses."""

    sqlstate = "08001"


class UndefinedFile(PgGpt2Error):
    """A path that does not lead to a file."""

    sqlstate = "58P01"


class FileAccessError(PgGpt2Error):
    """The operating system refused to read or write a file."""

    sqlstate = "58030"


class DiskFull(PgGpt2Error):
    """No room for a file."""

    sqlstate = "53100"


class OutOfMemory(PgGpt2Error):
    """More memory than there is, or than `pg_gpt2.max_memory` allows."""

    sqlstate = "53200"


class LimitExceeded(PgGpt2Error):
    """More than is taken on, whatever the memory."""

    sqlstate = "54000"


class FeatureNotSupported(PgGpt2Error):
    """Something that this server or encoding cannot do."""

    sqlstate = "0A000"


class TooManyOpenFiles(PgGpt2Error):
    """The machine or the server has no room for another open file."""

    sqlstate = "53000"


# What is wrong with one text of many: it is too long, or has what the vocabulary lacks, or is empty where a model has no token to
# begin after.
OF_A_TEXT = (InvalidParameter, InconsistentData, WrongState)


def of_system(error: OSError, what: str) -> PgGpt2Error:
    """What the operating system refused to do with `what`."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{what} cannot be written: {reason}", hint="Make room there, or choose another place.")
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"{what} cannot be read or written: {reason}", hint="Free memory on the server.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpenFiles(f"{what} cannot be opened: {reason}", hint="Raise the limit of open files (ulimit -n).")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UndefinedFile(
            f"{what} does not exist: {reason}",
            hint="The path is on the server, seen by its operating-system user.",
        )
    return FileAccessError(
        f"{what} cannot be read or written: {reason}",
        hint="The server's operating-system user needs access, and the disk must be sound.",
    )
