"""What a process says: JSON lines on stderr, and one sentence when it cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from tomllib import TOMLDecodeError
from typing import Any

import orjson
import structlog
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from app import errors
from app.errors import IsocenterError

LEVELS: Mapping[str, str] = {"warn": "warning", "exception": "error"}
"""What a method's level is called, when not like the method."""


def guarded(work: Callable[[], object]) -> None:
    """Run `work`; an error is one sentence on stderr and exit status 1, never a trace: traces show values."""
    configure()
    try:
        work()
    except ValidationError as error:
        _stop(*_faults(error))
    except (IsocenterError, SettingsError) as error:
        _stop(str(error))
    except TOMLDecodeError as error:
        _stop(f"the settings file is not TOML: {error}")
    except SQLAlchemyError:
        _stop("the database does not answer: check ISOCENTER_DATABASE_URL")
    except OSError as error:
        _stop(f"{error.filename or 'a file or socket'}: {error.strerror or type(error).__name__}")
    except Exception as error:  # noqa: BLE001 - whatever it was, its message may hold what nobody may read
        _stop(f"this should not happen: {type(error).__name__} at {errors.place(error)}")


def _faults(error: ValidationError) -> Iterable[str]:
    """Only setting and rule, each once: a value may be a secret."""
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        # Pydantic names the branches of a union in brackets; nobody wrote those.
        where = [str(part) for part in fault["loc"] if "[" not in str(part)]
        yield ": ".join((*where, fault["msg"].removeprefix("Value error, ")))


def configure() -> None:
    """JSON lines, UTC, without the texts of libraries: those may quote what they were given."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Terse("%(levelname)s %(name)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # Without its texts pynetdicom's lines say nothing; what matters is raised or answered.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[_line],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def tell(said: dict[str, Any]) -> None:
    """Write a line that every request has: a logger would take three times as long to come to the same."""
    out = sys.stderr.buffer
    out.write(_line(None, "info", said) + b"\n")
    out.flush()


def _line(_logger: object, method: str, event: MutableMapping[str, Any]) -> bytes:
    """One event as one line: what was told, then its level and time. One step, for every request pays it."""
    said = {**event, "level": LEVELS.get(method, method), "timestamp": datetime.now(UTC)}
    return orjson.dumps(said, default=repr, option=orjson.OPT_UTC_Z)


class _Terse(logging.Formatter):
    """One line of an error: its kind and place, for a trace shows values."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.formatMessage(record)
        error = record.exc_info[1] if record.exc_info else None
        return line if error is None else f"{line} {type(error).__name__} at {errors.place(error)}"


def _stop(*sentences: str) -> None:
    for sentence in dict.fromkeys(sentences):
        sys.stderr.write(f"isocenter: {sentence}\n")
    sys.exit(1)
