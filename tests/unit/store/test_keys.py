"""Wrapped keys: unreadable without the secret, bound to their row (decision 11 of the design)."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import Settings
from app.store import keys
from app.store.database import Store
from app.store.tables import secret_key

KEY = keys.Key("k1", b"very secret", {"kid": "k1"})
ONE, TWO = b"1" * 32, b"2" * 32


def test_a_key_comes_back_only_with_its_secret(store: Store) -> None:
    store.transact(lambda c: keys.add_key(c, ONE, purpose="id_token", key=KEY))
    with store.read() as connection:
        assert keys.keys(connection, ONE, purpose="id_token") == [KEY]
        assert b"very secret" not in connection.execute(secret_key.select()).one().wrapped
        with pytest.raises(ConfigurationError, match="ISOCENTER_SECRET_KEY"):
            keys.keys(connection, TWO, purpose="id_token")
    assert "secret" not in repr(KEY)


def test_a_row_cannot_be_passed_off_as_another(store: Store) -> None:
    store.transact(lambda c: keys.add_key(c, ONE, purpose="id_token", key=KEY))
    store.transact(lambda c: c.execute(secret_key.update().values(id="k2")))
    with store.read() as connection, pytest.raises(ConfigurationError):
        keys.keys(connection, ONE, purpose="id_token")


def test_a_retired_key_is_published_for_a_while(store: Store) -> None:
    store.transact(lambda c: keys.add_key(c, ONE, purpose="id_token", key=KEY))
    store.transact(lambda c: keys.retire_keys(c, purpose="id_token"))
    with store.read() as connection:
        assert keys.keys(connection, ONE, purpose="id_token") == []
        assert keys.public_keys(connection, purpose="id_token", retired_after=0) == [{"kid": "k1"}]
        assert keys.public_keys(connection, purpose="id_token", retired_after=2**60) == []


def test_with_sqlite_one_secret_is_generated_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new")
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: keys.wrapping_secret(settings), range(8)))
    assert len(secrets) == 1
    assert len(secrets.pop()) == 32
    files = list((tmp_path / "new").iterdir())
    assert [path.name for path in files] == ["secret.key"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "given",
    [
        {"database_url": "postgresql+psycopg://u@h/d"},
        {"database_url": "postgresql+psycopg://u@h/d", "secret_key": "short"},
        {"secret_key_file": Path("/does/not/exist")},
    ],
)
def test_without_a_usable_secret_the_server_says_what_to_do(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        keys.wrapping_secret(Settings(data_dir=tmp_path, **given))  # pyright: ignore


def test_a_configured_secret_or_its_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("s" * 40 + "\n")
    by_file = keys.wrapping_secret(Settings(data_dir=tmp_path, secret_key_file=path))
    by_value = keys.wrapping_secret(Settings(data_dir=tmp_path, secret_key="s" * 40))  # pyright: ignore
    assert by_file == by_value
    assert not (tmp_path / "secret.key").exists()
