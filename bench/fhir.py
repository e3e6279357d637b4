"""Reads and searches per second over HTTP, with one client and with several."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from _installation import count, started, told

FHIR = {"Content-Type": "application/fhir+json"}


def main() -> None:
    requests, clients = count("REQUESTS", 500), count("CLIENTS", 4)
    with started() as site:
        places = site.places
        headers = {"Authorization": f"Bearer {places.token}"}

        def several(path: str) -> list[float]:
            with httpx.Client(base_url=places.base, headers=headers, trust_env=False) as client:
                return [_timed(client, path) for _ in range(requests // clients)]

        with httpx.Client(base_url=places.base, headers=headers, trust_env=False) as client:
            for number in range(count("PATIENTS", 50)):
                body = {"resourceType": "Patient", "name": [{"family": f"Bench{number}"}]}
                made = client.post("/fhir/Patient", json=body, headers=FHIR).raise_for_status().json()
            for what, path in (("read", f"/fhir/Patient/{made['id']}"), ("search of 50", "/fhir/Patient?_count=50")):
                told(f"{what}, 1 client", [_timed(client, path) for _ in range(requests)])
                started_at = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    times = [one for part in pool.map(several, [path] * clients) for one in part]
                told(f"{what}, {clients} clients", times)
                print(f"{'':<48} {len(times) / (time.perf_counter() - started_at):.0f} per second", flush=True)


def _timed(client: httpx.Client, path: str) -> float:
    begun = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    main()
