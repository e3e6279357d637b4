"""Let judges that are not ours judge every FHIR answer of a test run (tests/judges/README.md).

`judge.py FOLDER [--least N]`: FOLDER holds what tests/recorder.py kept. Exits 1 for a finding that
tests/judges/known.toml does not explain, or when fewer than N resources were there to be judged.
`judge.py --install` fetches the judges from the npm registry, by their lock file; a repetition does nothing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ohif import npm_environment

Json = dict[str, Any]
JUDGES = Path(__file__).parents[1] / "tests" / "judges"
FOREIGN = ("medplum", "fhirjs", "invariants")
PER_TYPE = 1500
SHOWN = 40
STEM = {"resourceType": "Patient"}
"""Stands for an entry's resource while its Bundle is judged: a Patient needs nothing."""

_TIME = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
_SAME = (
    (re.compile(_TIME + r"(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)"), "T"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "U"),
    (re.compile(r"(?:localhost|127\.0\.0\.1):\d+"), "H"),
    (re.compile(r"\b[0-2](?:\.(?:0|[1-9]\d{0,38})){4,15}\b"), "O"),
    (re.compile(r'(?<="id": ")[A-Za-z0-9.\-]{1,64}(?=")'), "I"),
    (re.compile(r'(?<="versionId": ")\d{1,9}(?=")'), "V"),
    (re.compile(r'(?<=W/\\")\d{1,9}(?=\\")'), "V"),
    (re.compile(r'(?<="total": )\d{1,9}'), "N"),
    (re.compile(r'(?<="url": "http)s?://[\w.:/~?&=%+,*$|@!;()\[\]\'-]*(?=")'), "L"),
    (re.compile(r"\b([A-Z][A-Za-z]+)/[A-Za-z0-9.\-]{1,64}(?=[\"/])"), r"\1/I"),
)
"""Two resources that differ only in valid ids, times, hosts and UIDs are one for the judges."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judge says of one resource, and where the resource came from."""

    judge: str
    at: str
    says: str
    origin: str

    def __str__(self) -> str:
        return f"{self.judge}: {self.at}: {self.says}\n    {self.origin}"


@dataclass(frozen=True, slots=True)
class Known:
    """A false alarm, explained."""

    judge: str
    at: re.Pattern[str]
    says: re.Pattern[str]

    def explains(self, finding: Finding) -> bool:
        return self.judge == finding.judge and bool(self.at.match(finding.at) and self.says.match(finding.says))


def install() -> int:
    """`npm ci` without scripts of packages, once for each content of the lock file."""
    wanted = hashlib.sha256((JUDGES / "package-lock.json").read_bytes()).hexdigest()
    stamp = JUDGES / "node_modules" / ".isocenter-lock"
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    print("setup: the judges of FHIR answers", file=sys.stderr)
    command = [Path(sys.executable).with_name("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        [*command, "--loglevel=error", "--prefer-offline"], cwd=JUDGES, env=npm_environment(dict(os.environ)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.strip()), "no answer")
        print(f"The judges could not be fetched from the npm registry ({reason.strip()}):", file=sys.stderr)
        print("check the network and npm's registry setting, then repeat.", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    return 0


def known(path: Path) -> list[Known]:
    """The explained false alarms; each must give its reason."""
    rows = tomllib.loads(path.read_text()).get("known", [])
    assert all(row["reason"] for row in rows)
    return [Known(row["judge"], re.compile(row["at"]), re.compile(row["says"])) for row in rows]


def answers(folder: Path) -> Iterator[Json]:
    """The lines of every process of the run; one that was killed leaves a file without its end."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            try:
                for line in lines:
                    yield json.loads(line)
            except (EOFError, OSError, ValueError, zlib.error):
                print(f"judge: {path.name} has no end: its process was killed", file=sys.stderr)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice} stands twice in one object")
    return dict(pairs)


def _finite(text: str) -> float:
    """No JavaScript holds a larger number than this."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _whole(text: str) -> int:
    return int(text) if len(text) < 300 else 10**300


def empties(value: Any, at: str, sibling: bool = False) -> Iterator[tuple[str, str]]:
    """What R4's JSON forbids: nothing where something must be (https://hl7.org/fhir/R4/json.html)."""
    if value is None or value in ("", [], {}):
        yield at, "is null or empty"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from empties(inner, f"{at}.{name}", name.startswith("_") or f"_{name}" in value)
    elif isinstance(value, list):
        # A null keeps the place of a primitive that stands, or has extensions, in the sibling list.
        spared = sibling and any(inner is not None for inner in value)
        for number, inner in enumerate(value):
            if inner is not None or not spared:
                yield from empties(inner, f"{at}[{number}]")


def apart(resource: Json) -> Iterator[Json]:
    """The resource, and apart from it what a Bundle carries: each is judged once, however often it was sent."""
    if resource.get("resourceType") != "Bundle":
        yield resource
        return
    # Rules about a document or a message look at what its first entry is.
    is_whole = resource.get("type") in {"document", "message"}
    entries: list[Json] = []
    for entry in resource.get("entry", []):
        inner = entry.get("resource")
        if inner is None:
            entries.append(entry)
            continue
        yield from apart(inner)
        if is_whole:
            entries.append(entry)
            continue
        entries.append(entry | {"resource": STEM | {name: inner[name] for name in ("id", "meta") if name in inner}})
    yield resource | ({"entry": entries} if entries else {})


def shape(resource: Json) -> str:
    """Equal for resources that no judge tells apart."""
    if resource.get("resourceType") == "Bundle":
        entries = [_plain(json.dumps(entry, ensure_ascii=False)) for entry in resource.get("entry", [])]
        resource = resource | ({"entry": sorted(set(entries))} if "entry" in resource else {})
    return hashlib.sha256(_plain(json.dumps(resource, ensure_ascii=False)).encode()).hexdigest()


def _plain(text: str) -> str:
    for pattern, same in _SAME:
        text = pattern.sub(same, text)
    return text


@dataclass(slots=True)
class Case:
    """Everything there is to judge."""

    resources: dict[str, Json]
    origins: dict[str, str]
    findings: list[Finding]
    seen: int = 0
    left_out: int = 0


def gather(folder: Path) -> Case:
    """Read the answers, split Bundles, keep one of a kind."""
    case, per_type, seen = Case({}, {}, []), Counter[str](), set[int]()
    for answer in answers(folder):
        origin = f"{answer['status']} {answer['asked']} in {answer['test']}"
        try:
            resource = json.loads(answer["body"], object_pairs_hook=_once, parse_float=_finite, parse_int=_whole)
            kinds = [(one["resourceType"], one) for one in apart(resource)]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            case.findings.append(Finding("json", "", f"is no resource: {error}", origin))
            continue
        for kind, one in kinds:
            case.seen += 1
            if (same := hash(json.dumps(one))) in seen or (key := shape(one)) in case.resources:
                continue
            seen.add(same)
            per_type[kind] += 1
            if per_type[kind] > PER_TYPE:
                case.left_out += 1
                continue
            case.resources[key], case.origins[key] = one, origin
            case.findings += [Finding("json", at, says, origin) for at, says in empties(one, kind)]
    return case


def ask(judge: str, case: Case) -> list[Finding]:
    """One Node process judges them all."""
    node = Path(sys.executable).parent / "node"
    lines = "".join(json.dumps({"key": key, "resource": one}) + "\n" for key, one in case.resources.items())
    done = subprocess.run([node, JUDGES / "judge.mjs", judge], input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{judge} ended with {done.returncode}: {done.stderr[-2000:]}")
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    if len(verdicts) != len(case.resources):
        raise RuntimeError(f"{judge} judged {len(verdicts)} of {len(case.resources)} resources")
    return [
        Finding(judge, issue["at"], issue["says"], case.origins[verdict["key"]])
        for verdict in verdicts
        for issue in verdict["issues"]
    ]


def verdict(case: Case, explained: list[Known]) -> list[Finding]:
    """Ask every judge; print what each did; the findings that nothing explains."""
    with ThreadPoolExecutor() as pool:
        asked: Mapping[str, list[Finding]] = dict(
            zip(FOREIGN, pool.map(lambda judge: ask(judge, case), FOREIGN), strict=True)
        )
    unexplained: list[Finding] = []
    for judge, found in {"json": case.findings, **asked}.items():
        new = [finding for finding in found if not any(one.explains(finding) for one in explained)]
        unexplained += new
        told = f", {len(found) - len(new)} explained" if len(found) > len(new) else ""
        print(f"judge: {judge:<10} {len(case.resources)} judged, {len(new)} findings{told}")
    everything = [*case.findings, *(one for found in asked.values() for one in found)]
    for one in explained:
        if not any(one.explains(finding) for finding in everything):
            print(f"judge: not seen in this run: {one.judge} {one.says.pattern}")
    return unexplained


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folder", type=Path, nargs="?")
    reader.add_argument("--least", type=int, default=0)
    reader.add_argument("--install", action="store_true")
    options = reader.parse_args()
    if options.install or options.folder is None:
        return install() if options.install else reader.error("name a folder")
    return judge(options.folder, options.least)


def judge(folder: Path, least: int) -> int:
    """Gather, ask, print; the exit status."""
    began = time.monotonic()
    if not (JUDGES / "node_modules").is_dir():
        print("judge: the judges are not installed: run 'make setup-test'", file=sys.stderr)
        return 1
    case = gather(folder)
    kinds = Counter(one["resourceType"] for one in case.resources.values())
    beyond = f", {case.left_out} more left out" if case.left_out else ""
    print(f"judge: {case.seen} resources answered, {len(case.resources)} of them different{beyond}")
    print("judge: " + ", ".join(f"{kind} {number}" for kind, number in kinds.most_common()))
    if len(case.resources) < least:
        print(f"judge: a whole run has at least {least}: was it recorded?", file=sys.stderr)
        return 1
    if not case.resources:
        return 0
    findings = verdict(case, known(JUDGES / "known.toml"))
    different = {(one.judge, re.sub(r"\d+", "0", one.at), one.says): one for one in reversed(findings)}
    for finding in list(different.values())[:SHOWN]:
        print(finding)
    print(f"judge: {len(findings)} findings, {len(different)} different, {time.monotonic() - began:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
