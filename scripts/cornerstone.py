"""Install and bundle the Cornerstone3D example from the npm registry, by its lock file; a repetition does nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from ohif import npm_environment

EXAMPLE = Path(__file__).parents[1] / "examples" / "cornerstone"
BUNDLE = EXAMPLE / "dist"


def wanted() -> str:
    """What the bundle is made of."""
    files = [EXAMPLE / "package-lock.json", EXAMPLE / "build.mjs", *sorted((EXAMPLE / "src").iterdir())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def run(*command: str | Path) -> str:
    """The reason why it failed, or nothing."""
    done = subprocess.run(
        command, cwd=EXAMPLE, env=npm_environment(dict(os.environ)), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = (line.strip() for line in done.stderr.splitlines() if line.strip())
    return next(said, "no answer") if done.returncode else ""


def main() -> int:
    """`npm ci` without scripts of packages, then the build."""
    stamp = BUNDLE / ".made-of"
    if stamp.is_file() and stamp.read_text() == wanted():
        return 0
    print("setup: the Cornerstone example", file=sys.stderr)
    programs = Path(sys.executable).parent
    install = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefer-offline")
    if reason := run(programs / "npm", *install):
        print(f"The Cornerstone example could not be fetched from the npm registry ({reason}):", file=sys.stderr)
        print("check the network and npm's registry setting, then repeat.", file=sys.stderr)
        return 1
    if reason := run(programs / "node", "build.mjs"):
        print(f"The Cornerstone example could not be bundled: {reason}", file=sys.stderr)
        return 1
    stamp.write_text(wanted())
    return 0


if __name__ == "__main__":
    sys.exit(main())
