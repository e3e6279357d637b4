"""A viewer of three small files, installed by the real set-up, behind the real door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store.database import Store
from scripts import ohif as setup
from tests.unit.viewer.site import Site, serving

BUNDLE = "app.bundle.0123456789abcdef.js"


@pytest.fixture
def ohif_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "ohif"
    folder.mkdir()
    page = '<!doctype html><script>window.PUBLIC_URL="/ohif/"</script><script src="{{APP_CONFIG}}"></script>'
    contents = {"index.html": page.encode(), BUNDLE: b"const a = 1;\n" * 500, "assets/logo.png": b"\x89PNG"}
    setup.lay_out(folder, contents, setup.Release())
    (tmp_path / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture
def site(store: Store, tmp_path: Path, ohif_dir: Path) -> Iterator[Site]:
    with serving(store, tmp_path, ohif_dir) as running:
        yield running
