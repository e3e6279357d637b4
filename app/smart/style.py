"""How a launched app may look like its surroundings (SMART App Launch 2.2, `smart_style_url`).

The address changes with the content, so that apps may keep what stands there.
"""

from __future__ import annotations

import hashlib
from functools import cache

import orjson

from app.settings import Settings
from app.smart.facts import facts


@cache
def content() -> bytes:
    """The style as JSON."""
    return orjson.dumps(dict(facts().style))


@cache
def name() -> str:
    """The last part of its address."""
    return f"{hashlib.sha256(content()).hexdigest()[:16]}.json"


def url(settings: Settings) -> str:
    """Where it stands."""
    return f"{settings.public_url}/auth/style/{name()}"
