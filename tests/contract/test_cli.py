"""The command line as its user meets it: one sentence and a status, whatever is wrong; never a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def isocenter(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ISOCENTER_")}
    environment |= {"ISOCENTER_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT), **settings}
    command = [sys.executable, "-m", "app.cli", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ISOCENTER_TIMEZONE": "Mars/Base"}, "timezone: an IANA time zone"),
        ({"ISOCENTER_AUTHORITY": "no json"}, "authority"),
        ({"ISOCENTER_CONFIG": "broken.toml"}, "the settings file is not TOML"),
        ({"ISOCENTER_DATABASE_URL": "nonsense://s3cret"}, "check ISOCENTER_DATABASE_URL"),
        ({"ISOCENTER_DATA_DIR": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, settings: dict[str, str], sentence: str) -> None:
    (tmp_path / "broken.toml").write_text("port = = 1")
    done = isocenter(tmp_path, "check", **settings)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert all(line.startswith("isocenter: ") for line in done.stderr.splitlines())
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [("serve",), ("client", "list")])
def test_an_empty_database_asks_for_migrate(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = isocenter(tmp_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("isocenter: the database schema is empty")
    assert done.stderr.endswith("run `isocenter migrate`\n")


def test_an_index_made_for_another_zone_is_made_anew_before_serving(tmp_path: Path) -> None:
    assert isocenter(tmp_path, "migrate").returncode == 0
    assert isocenter(tmp_path, "index", "status").stdout == '{"current": true}\n'
    zone = {"ISOCENTER_TIMEZONE": "Europe/Vienna"}
    refused = isocenter(tmp_path, "serve", "--role", "api", **zone)
    assert refused.returncode == 1
    assert refused.stderr.endswith("run `isocenter index rebuild`\n")
    # What a new database holds are the published definitions.
    assert json.loads(isocenter(tmp_path, "index", "rebuild", **zone).stdout)["resources"] > 700
    assert isocenter(tmp_path, "index", "status", **zone).stdout == '{"current": true}\n'


def test_keys_that_are_no_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("no json")
    assert isocenter(tmp_path, "migrate").returncode == 0
    done = isocenter(tmp_path, "client", "add", "--id", "a", "--jwks", "keys.json")
    assert (done.returncode, done.stderr) == (1, "isocenter: keys.json is not JSON\n")


def test_the_version_is_shown(tmp_path: Path) -> None:
    assert isocenter(tmp_path, "--version").stdout.startswith("isocenter 0.")
