"""What a process says: JSON lines on stderr, and one sentence when it cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.errors import IsocenterError


def guarded(work: Callable[[], object]) -> None:
    """Run `work`; an error is one sentence on stderr and exit status 1."""
    configure()
    try:
        work()
    except ValidationError as error:
        # Only setting and rule: a value may be a secret.
        for fault in error.errors(include_input=False, include_url=False, include_context=False):
            _fail(": ".join((*(str(part) for part in fault["loc"]), fault["msg"])))
        sys.exit(1)
    except IsocenterError as error:
        _fail(str(error))
        sys.exit(1)
    except SQLAlchemyError:
        _fail("the database does not answer: check ISOCENTER_DATABASE_URL")
        sys.exit(1)


def configure() -> None:
    """JSON lines, UTC, without the texts of libraries: those may quote what they were given."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _fail(sentence: str) -> None:
    sys.stderr.write(f"isocenter: {sentence}\n")
