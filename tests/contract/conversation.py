"""Plays a conversation of examples/conversations: the part of Hurl's syntax that they use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

START = re.compile(r"^(GET|HEAD|POST|PUT|DELETE) (\S+)$")
STATUS = re.compile(r"^HTTP (\d{3})$")
CAPTURE = re.compile(r'^(\w+): jsonpath "(\$[^"]*)"(?: regex "([^"]+)")?$')
ASSERT = re.compile(r'^jsonpath "(\$[^"]*)" == (.+)$')
SECTIONS = ("[Captures]", "[Asserts]")


@dataclass
class Exchange:
    """One request and what must come back."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    status: int = 0
    captures: list[str] = field(default_factory=list)
    asserts: list[str] = field(default_factory=list)

    def play(self, client: httpx.Client, known: dict[str, str]) -> None:
        headers = {name: fill(value, known) for name, value in self.headers.items()}
        body = fill(self.body.strip().strip("`"), known)
        answer = client.request(self.method, fill(self.url, known), headers=headers, content=body or None)
        here = f"{self.method} {self.url}"
        assert answer.status_code == self.status, f"{here}: {answer.status_code} {answer.text}"
        for line in self.captures:
            name, path, pattern = matched(CAPTURE, line).groups()
            value = str(at(answer.json(), path))
            known[name] = matched(re.compile(pattern), value)[1] if pattern else value
        for line in self.asserts:
            path, expected = matched(ASSERT, line).groups()
            assert at(answer.json(), path) == json.loads(fill(expected, known)), f"{here}: {line}\n{answer.text}"


def read(text: str) -> list[Exchange]:
    """The exchanges of a file; a line that belongs nowhere is a fault of the file."""
    found: list[Exchange] = []
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for line in lines:
        if not line:
            continue
        method, url = matched(START, line).groups()
        exchange = Exchange(method, url)
        _request(exchange, lines)
        _answer(exchange, lines)
        found.append(exchange)
    return found


def _request(exchange: Exchange, lines: Iterator[str]) -> None:
    for line in lines:
        if status := STATUS.match(line):
            exchange.status = int(status[1])
            return
        if not exchange.body and (header := re.match(r"^([A-Za-z-]+): (.+)$", line)):
            exchange.headers[header[1]] = header[2]
        else:
            exchange.body += line + "\n"
    raise AssertionError(f"{exchange.url} has no HTTP line")


def _answer(exchange: Exchange, lines: Iterator[str]) -> None:
    section = ""
    for line in lines:
        if not line:
            return
        if line in SECTIONS:
            section = line
            continue
        assert section, f"not understood: {line}"
        (exchange.captures if section == "[Captures]" else exchange.asserts).append(line)


def fill(text: str, known: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: known[name[1]], text)


def at(value: Any, path: str) -> Any:
    """What `$.a[0].b` leads to."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


def matched(pattern: re.Pattern[str], line: str) -> re.Match[str]:
    found = pattern.search(line)
    assert found is not None, f"not understood: {line}"
    return found
