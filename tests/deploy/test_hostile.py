"""The hostile suite through nginx, which keeps what others were shown: a part of every route, credential and trick."""

from __future__ import annotations

import random
from collections.abc import Iterator

import httpx
import pytest

from app.smart import clients
from app.smart.clients import Client
from tests.deploy import nginx
from tests.deploy.nginx import Front
from tests.hostile.credentials import minted
from tests.hostile.server import serving
from tests.hostile.suite import Suite
from tests.hostile.tricks import tricks
from tests.hostile.wire import Wire
from tests.hostile.world import STUDIES, U, seeded
from tests.orthanc.conftest import Orthanc, orthanc
from tests.processes import free_port, wait_until

__all__ = ["orthanc"]

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]

PAIRS, TRICKS = 120, 3
"""How many pairs of route and credential, and how many tricks at each route."""


@pytest.fixture(scope="module")
def attacked(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Suite, Front]]:
    """The suite against nginx's port, after somebody who may see everything has seen it all twice."""
    folder = tmp_path_factory.mktemp("attacked")
    with seeded(orthanc, folder, free_port()) as world:
        credentials, mint = minted(world)
        front = nginx.prepared(tmp_path_factory.mktemp("front"))
        log = folder / "serve.log"
        with (
            serving(world, log, ISOCENTER_ACCEL_REDIRECT="/_kept"),
            nginx.serving(front, f"127.0.0.1:{world.settings.port}"),
        ):
            wire = Wire(("127.0.0.1", front.plain_port))
            suite = Suite(world, wire, credentials, random.Random(7))
            suite.forbidden = [world.settings.orthanc_url.encode(), b"X-Accel-Redirect", b"/_kept"]
            for _ in range(2):
                suite.harvest(next(one for one in credentials if one.name == "system"))
            yield suite, front
            wire.close()
        logs = front.logs
        assert not [secret for secret in mint.secrets if secret in logs]
        assert not [study.uid for study in STUDIES if study.uid in logs]


def test_no_answer_tells_of_what_nginx_keeps_for_others(
    attacked: tuple[Suite, Front], capsys: pytest.CaptureFixture[str]
) -> None:
    suite, front = attacked
    assert front.kept.count("HIT") > 50
    for shape, credential in suite.chance.sample(list(suite.pairs()), PAIRS):
        suite.honest(shape, credential, suite.chance)
    blind = [credential for credential in suite.credentials if credential.hidden()]
    # Whoever may see one study of a patient may say that patient's number.
    strange = [one for one in blind if {study.person for study in one.hidden()} == one.strangers()]
    for shape in dict.fromkeys(shape for shape, _ in suite.pairs()):
        pack = tricks(shape)
        for name, trick in suite.chance.sample(pack, min(TRICKS, len(pack))):
            suite.play(shape, suite.chance.choice(strange if "{m}" in name else blind), name, trick)
    with capsys.disabled():
        print(f"\n  through nginx: {suite.report}")
    assert not suite.report.faults, "\n".join(suite.report.faults[:100])


def test_what_is_kept_is_readable_for_each_apps_page_and_no_other(attacked: tuple[Suite, Front]) -> None:
    """The permission to read belongs to the request, not to the bytes."""
    suite, front = attacked
    pages = [f"https://{name}.example.org" for name in ("one", "other")]
    for page in pages:
        app = Client(page[8:], page, "public", redirect_uris=(f"{page}/",), scope="patient/ImagingStudy.rs")
        suite.world.store.transact(lambda connection, app=app: clients.ensure_client(connection, app))
    system = next(one for one in suite.credentials if one.name == "system")
    (name, value), *_ = system.headers
    path = f"/dicom-web/studies/{U.uid}/series/{U.series()}/instances/{U.instance()}/frames/1"
    before = len(front.kept)
    with httpx.Client(base_url=front.url, headers={name.decode(): value.decode()}, trust_env=False) as client:

        def leave(origin: str) -> str | None:
            answer = client.get(path, headers={"Origin": origin})
            assert answer.status_code == 200, answer.text
            return answer.headers.get("access-control-allow-origin")

        wait_until(lambda: leave(pages[0]) == pages[0], "the new app to be known")
        assert leave(pages[1]) == pages[1]
        assert leave("https://stranger.example.org") is None
    assert set(front.kept[before + 1 :]) == {"HIT"}
