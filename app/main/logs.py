"""What a process says: JSON lines on stderr, and one sentence when it cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from tomllib import TOMLDecodeError

import structlog
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from app import errors
from app.errors import IsocenterError


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
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


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
