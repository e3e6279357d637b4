"""The hostile suite through nginx, which keeps what others were shown: a part of every route, credential and trick."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.deploy import nginx
from tests.deploy.nginx import Front
from tests.hostile.credentials import minted
from tests.hostile.server import serving
from tests.hostile.suite import Suite
from tests.hostile.tricks import tricks
from tests.hostile.wire import Wire
from tests.hostile.world import STUDIES, seeded
from tests.orthanc.conftest import Orthanc, orthanc
from tests.processes import free_port

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
