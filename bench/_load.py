"""A load generator for HTTP/1.1: keep-alive connections that send prepared requests, in a process of its own.

It reads its orders as one JSON object from stdin and answers with one: requests per second, latencies, statuses.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from itertools import cycle
from typing import Any

import uvloop


class Connection(asyncio.Protocol):
    """One connection: the next request goes out when the answer before it is complete."""

    def __init__(self, run: Run, offset: int) -> None:
        self.run, self.buffer, self.wanted, self.sent = run, bytearray(), -1, 0.0
        self.requests = cycle(run.requests[offset:] + run.requests[:offset])

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        if self.run.over():
            self.transport.close()
            return
        self.sent = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.wanted < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.run.statuses[int(head[9:12])] += 1
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self.wanted = end + 4 + length
        if len(self.buffer) >= self.wanted:
            self.run.latencies.append(time.perf_counter() - self.sent)
            self.run.received += len(self.buffer)
            self.buffer.clear()
            self.wanted = -1
            self.next()

    def connection_lost(self, _error: Exception | None) -> None:
        self.run.closed()


class Run:
    """One measurement: ends after so many seconds, or so many requests."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.requests = [base64.b64decode(one) for one in orders["requests"]]
        self.connections, self.limit = orders["connections"], orders.get("limit", 0)
        self.ends = time.perf_counter() + orders["seconds"]
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.received = self.begun = 0
        self.living = self.connections
        self.done = asyncio.Event()

    def over(self) -> bool:
        if time.perf_counter() >= self.ends or (self.limit and self.begun >= self.limit):
            return True
        self.begun += 1
        return False

    def closed(self) -> None:
        self.living -= 1
        if not self.living:
            self.done.set()


async def main(orders: dict[str, Any]) -> dict[str, Any]:
    run, loop = Run(orders), asyncio.get_running_loop()
    began, share = time.perf_counter(), max(1, len(run.requests) // run.connections)
    for number in range(run.connections):
        offset = number * share % len(run.requests)
        await loop.create_connection(lambda at=offset: Connection(run, at), orders["host"], orders["port"])
    await run.done.wait()
    took, ordered = time.perf_counter() - began, sorted(run.latencies)
    return {
        "rate": len(ordered) / took,
        "p50": ordered[len(ordered) // 2] * 1000,
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
        "n": len(ordered),
        "statuses": dict(run.statuses),
        "megabytes": run.received / took / 1e6,
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(main(json.load(sys.stdin))), sys.stdout)
