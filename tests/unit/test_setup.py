"""The set-up scripts: what they fetch is the pinned thing, what they leave behind is whole or nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import brotli
import pytest

from tests import processes
from tests.scripts import script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "ohif.py"

PAGE = (
    '<html><head><meta name="msapplication-TileImage" content="/assets/mstile.png">'
    '<meta name="msapplication-config" content="/assets/browserconfig.xml">'
    '<script>console.time("scriptToView"),window.PUBLIC_URL="/"</script>'
    '<link rel="manifest" href="/manifest.json">'
    + "".join(f'<link rel="icon" href="/assets/icon-{number}.png">' for number in range(25))
    + '<link rel="yandex-tableau-widget" href="/assets/yandex-browser-manifest.json">'
    '<script rel="preload" as="script" src="/app-config.js"></script>'
    '<script rel="preload" as="script" type="module" src="/init-service-worker.js"></script>'
    '<script>window.PUBLIC_URL="/"</script><script defer src="/app.bundle.1a.js"></script>'
    '<link href="/app.bundle.css" rel="stylesheet"></head></html>'
)


ohif = script("ohif")


def viewer() -> dict[str, bytes]:
    """A viewer as small as can be that is built like the real one."""
    start = '__webpack_require__.p = "/";\n'
    contents = {f"{number}.bundle.js": start.encode() for number in range(7)}
    contents["app.bundle.1a.js"] = (start + "load('/dicom-microscopy-viewer/a.js');\n" + "// long\n" * 500).encode()
    contents["app.bundle.css"] = b"@font-face { src: url(/a.woff2) }\n" * 5
    contents["index.html"] = PAGE.encode()
    contents["a.woff2"] = bytes(range(256)) * 8
    for pattern in ohif.DROPPED:
        contents[pattern.replace("*", "dropped")] = b"dropped"
    return contents


def package(folder: Path, contents: dict[str, bytes]) -> tuple[Path, object]:
    """The npm package of such a viewer and the release that pins it."""
    path = folder / "ohif.tgz"
    with tarfile.open(path, "w:gz") as archive:
        members = {"package/LICENSE": b"MIT"} | {f"package/dist/{name}": data for name, data in contents.items()}
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return path, ohif.Release("9.9.9", f"sha512-{digest}")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_address_of_the_page_stands_under_the_prefix_or_is_the_session_s() -> None:
    page = ohif.patch(ohif.drop(viewer()))["index.html"].decode()
    assert page.count('"/ohif/') == page.count('"/')
    assert page.count('src="{{APP_CONFIG}}"') == 1
    for gone in ("init-service-worker", "manifest.json", "browserconfig", "yandex"):
        assert gone not in page


def test_bundles_and_style_sheets_load_their_parts_from_under_the_prefix() -> None:
    patched = ohif.patch(ohif.drop(viewer()))
    assert patched["3.bundle.js"] == b'__webpack_require__.p = "/ohif/";\n'
    assert b"load('/ohif/dicom-microscopy-viewer/a.js')" in patched["app.bundle.1a.js"]
    assert patched["app.bundle.css"].count(b"url(/ohif/a.woff2)") == 5


def test_a_viewer_that_is_built_otherwise_is_refused_with_the_place_to_look_at() -> None:
    contents = viewer()
    del contents["3.bundle.js"]
    with pytest.raises(SystemExit, match=r"stands 7 times in \*\.js, not 8: look at PATCHES"):
        ohif.patch(ohif.drop(contents))


def test_a_viewer_without_a_file_that_we_drop_is_refused() -> None:
    contents = viewer()
    del contents["sw.js"]
    with pytest.raises(SystemExit, match=r"no file sw\.js any more"):
        ohif.drop(contents)


def test_the_manifest_names_every_file_with_its_hash_and_its_compressed_copies(tmp_path: Path) -> None:
    tarball, release = package(tmp_path, viewer())
    target = tmp_path / "var" / "ohif"
    assert ohif.install(target, tarball, release)
    manifest = json.loads((target / "manifest.json").read_text())
    assert (manifest["version"], manifest["integrity"]) == ("9.9.9", release.integrity)
    listed = {"manifest.json"}
    for row in manifest["files"]:
        data = (target / row["path"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        listed |= {row["path"], *(row["path"] + {"br": ".br", "gzip": ".gz"}[name] for name in row["encodings"])}
    assert listed == names(target)
    assert "LICENSE" in listed
    bundle = (target / "app.bundle.1a.js").read_bytes()
    assert brotli.decompress((target / "app.bundle.1a.js.br").read_bytes()) == bundle


def test_the_page_is_a_template_and_its_inline_scripts_are_named_for_the_security_policy(tmp_path: Path) -> None:
    tarball, release = package(tmp_path, viewer())
    ohif.install(tmp_path / "ohif", tarball, release)
    assert not list((tmp_path / "ohif").glob("index.html.*"))
    hashes = json.loads((tmp_path / "ohif" / "manifest.json").read_text())["inline_scripts"]
    second = base64.b64encode(hashlib.sha256(b'window.PUBLIC_URL="/ohif/"').digest()).decode()
    assert hashes[1:] == [f"sha256-{second}"]


def test_a_whole_viewer_is_left_alone_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    tarball, release = package(tmp_path, viewer())
    target = tmp_path / "ohif"
    assert ohif.install(target, tarball, release)
    assert not ohif.install(target, tarball, release)
    (target / "3.bundle.js").unlink()
    assert ohif.install(target, tarball, release)
    assert (target / "3.bundle.js").is_file()


def test_a_package_that_is_not_the_pinned_one_leaves_nothing(tmp_path: Path) -> None:
    tarball, _ = package(tmp_path, viewer())
    target = tmp_path / "var" / "ohif"
    done = subprocess.run(
        [sys.executable, SCRIPT, target, "--tarball", tarball], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not the pinned one" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(tmp_path / "var") == {".ohif.lock"}


def test_an_installed_viewer_survives_a_wrong_package(tmp_path: Path) -> None:
    tarball, release = package(tmp_path, viewer())
    target = tmp_path / "ohif"
    ohif.install(target, tarball, release)
    before = names(target)
    other = ohif.Release("10.0.0", "sha512-AAAA")
    with pytest.raises(SystemExit, match="not the pinned one"):
        ohif.install(target, tarball, other)
    assert names(target) == before


def test_what_a_killed_installation_left_behind_goes_with_the_next(tmp_path: Path) -> None:
    contents = viewer() | {"large.js": os.urandom(1_500_000).hex().encode()}
    tarball, release = package(tmp_path, contents)
    target = tmp_path / "var" / "ohif"
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import ohif; from pathlib import Path\n"
        f"ohif.install(Path({str(target)!r}), Path({str(tarball)!r}), ohif.Release('9.9.9', {release.integrity!r}))"
    )
    with processes.running([sys.executable, "-c", program], tmp_path / "log") as process:
        processes.wait_until(lambda: list(target.parent.glob(".ohif-*/viewer/*.bundle.js")), "the unpacking")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not target.exists()
    assert list(target.parent.glob(".ohif-*"))
    assert ohif.install(target, tarball, release)
    assert {path.name for path in target.parent.iterdir()} == {".ohif.lock", "ohif"}


def test_a_member_that_points_outside_is_not_unpacked(tmp_path: Path) -> None:
    tarball, _ = package(tmp_path, {"../../evil.js": b"1", "/evil.js": b"2", "good.js": b"3"})
    assert ohif.read(tarball) == {"LICENSE": b"MIT", "good.js": b"3"}


def test_npm_reads_the_settings_and_certificates_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "npmrc").write_text("registry=https://npm.example.org/\n")
    monkeypatch.setattr(ohif, "MACHINE_NPMRC", (str(tmp_path / "absent"), str(tmp_path / "npmrc")))
    assert ohif.npm_environment({})["NPM_CONFIG_GLOBALCONFIG"] == str(tmp_path / "npmrc")
    assert "NPM_CONFIG_GLOBALCONFIG" not in ohif.npm_environment({"npm_config_globalconfig": "/own"})
    assert ohif.npm_environment({"NODE_EXTRA_CA_CERTS": "/own.pem"})["NODE_EXTRA_CA_CERTS"] == "/own.pem"


@pytest.mark.slow
def test_without_the_npm_registry_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "var" / "ohif"],
        env={**os.environ, "NPM_CONFIG_REGISTRY": f"http://127.0.0.1:{processes.free_port()}/", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("OHIF 3.13.2 could not be fetched from the npm registry (")
    assert "ISOCENTER_OHIF_TARBALL" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(tmp_path / "var") == {".ohif.lock"}


def copy_of_the_scripts(folder: Path) -> Path:
    """The set-up in a folder of its own, without what it would set up."""
    for name in ("scripts", "deploy"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def set_up(
    folder: Path, *, system: str = "ID=debian\nVERSION_ID=12\n", user: str = ""
) -> subprocess.CompletedProcess[str]:
    (folder / "os-release").write_text(system)
    command = ["bash", str(folder / "scripts" / "setup.sh"), "test"]
    if user:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    environment = {"PATH": os.environ["PATH"], "ISOCENTER_OS_RELEASE": str(folder / "os-release")}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("system", "sentence"),
    [
        ("ID=fedora\nVERSION_ID=41\n", "not on 'fedora 41'"),
        ('ID=debian\nVERSION_ID="11"\n', "not on 'debian 11'"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "The tests need Debian 12 or 13"),
    ],
)
def test_a_system_that_is_not_served_is_refused_in_one_sentence(tmp_path: Path, system: str, sentence: str) -> None:
    done = set_up(copy_of_the_scripts(tmp_path), system=system)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without rights")
def test_somebody_without_rights_is_told_the_line_for_root(tmp_path: Path) -> None:
    # Other users may not enter the folders that pytest makes.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        copy_of_the_scripts(folder)
        (folder / "deploy" / "apt-packages.txt").write_text("[demo]\nno-such-package-of-isocenter\n")
        folder.chmod(0o755)
        closed = set_up(folder, user="65534")
        shutil.chown(folder, 65534)
        missing = set_up(folder, user="65534")
    finally:
        shutil.rmtree(folder)
    assert "is not writable for" in closed.stderr
    assert "apt-get install --no-install-recommends no-such-package-of-isocenter" in missing.stderr
    assert (closed.returncode, missing.returncode) == (1, 1)
    assert closed.stderr.count("\n") == missing.stderr.count("\n") == 1


def test_make_alone_lists_every_word() -> None:
    listed = subprocess.check_output(["make"], cwd=ROOT, env={"PATH": os.environ["PATH"]}, text=True)
    assert {line.split()[1] for line in listed.splitlines()} == {
        "setup", "setup-test", "demo", "test", "coverage", "check", "dev", "bench", "golden",
    }  # fmt: skip


def test_continuous_integration_runs_exactly_make_test() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
