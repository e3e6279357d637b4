"""The pages tell the truth about settings, links and commands; and no file knows the machine it was made on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from app import cli
from app.settings import Settings

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OUTSIDE = {
    "ISOCENTER_CONFIG": "read before the settings",
    "ISOCENTER_OHIF_TARBALL": "of the set-up",
    "ISOCENTER_CHAOS_ROUNDS": "of the tests",
    "ISOCENTER_CHAOS_SEED": "of the tests",
    "ISOCENTER_CHAOS_STEPS": "of the tests",
}
CHOSEN = re.compile(r"`(ISOCENTER_[A-Z0-9_]+)`")


def files() -> list[Path]:
    """What the repository holds, new files included, ignored ones not."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def pages() -> list[Path]:
    return [path for path in files() if path.suffix == ".md" and "tests" not in path.relative_to(ROOT).parts]


def settings() -> dict[str, object]:
    return {f"ISOCENTER_{name.upper()}": field.default for name, field in Settings.model_fields.items()}


def documented() -> dict[str, str]:
    """Setting → the default its row shows, or nothing in a table without defaults."""
    rows: dict[str, str] = {}
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        if line.startswith("|") and (named := CHOSEN.search(line.split("|")[1])):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[named[1]] = cells[1] if len(cells) == 3 else ""
    return rows


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    assert documented().keys() == settings().keys()


def test_documented_defaults_are_the_real_ones() -> None:
    shown = {name: default.strip("`") for name, default in documented().items() if default}
    real = settings()
    for name, text in shown.items():
        default = real[name]
        value = default.get_secret_value() if hasattr(default, "get_secret_value") else default
        assert text == _shown(value), name


def _shown(value: object) -> str:
    if value in ("", None, ()):
        return "empty"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_pages_and_code_name_no_setting_that_does_not_exist() -> None:
    known = settings().keys() | OUTSIDE.keys()
    for path in (*pages(), *(one for one in files() if one.suffix in {".py", ".toml", ".http"})):
        if path.is_relative_to(ROOT / "tests"):
            continue
        named = set(re.findall(r"\bISOCENTER_[A-Z_]+[A-Z]\b", path.read_text()))
        unknown = {name for name in named if name not in known and not name.startswith("ISOCENTER_TEST")}
        assert not unknown - _constants(path), path


def _constants(path: Path) -> set[str]:
    """Names a file defines itself, and prefixes of DICOM version names."""
    return set(re.findall(r'"(ISOCENTER_[A-Z_]+)_\d', path.read_text()))


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in {_anchor(heading) for heading in HEADING.findall(path.read_text())}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
        waiting += [(page.parent / target).resolve() for target in targets if target]
    wanted = {page for page in pages() if page.is_relative_to(ROOT / "docs")}
    assert not wanted - seen


def test_the_decisions_have_numbers_of_their_own() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [name.partition("-")[0] for name in names]
    assert len(numbers) == len(set(numbers)) > 10


def test_every_dependency_has_its_reason() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*wanted["project"]["dependencies"], *wanted["dependency-groups"]["dev"]]
    libraries = {re.split(r"[\[<>=,~ ]", one)[0] for one in named}
    text = next((ROOT / "docs" / "decisions").glob("*-libraries.md")).read_text()
    reasons = set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))
    assert reasons == libraries


def commands() -> Iterator[str]:
    def walk(name: str, group: click.Command) -> Iterator[str]:
        if not isinstance(group, click.Group):
            yield name
            return
        context = click.Context(group)
        for inner in group.list_commands(context):
            found = group.get_command(context, inner)
            assert found is not None
            yield from walk(f"{name} {inner}", found)

    return walk("isocenter", typer.main.get_command(cli.app))


def test_every_command_has_its_row() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [one for one in commands() if f"`{one}" not in text] == []


def test_no_file_knows_the_machine_it_was_made_on() -> None:
    # Spelled in parts, or this file would be the first to know.
    places = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", "/home/" + r"\w+/")))
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = places.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"
