"""The whole product of addresses, credentials and tricks against the gateway, and fuzz at length (tests/hostile).

Like bench/chaos.py it can fail. `HOSTILE_ROUNDS` (here `all`: each trick at each pair) and `FUZZ_EXAMPLES` (500).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    wanted = {"HOSTILE_ROUNDS": "all", "FUZZ_EXAMPLES": "500"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-o", "timeout=0", "tests/hostile"]
    return subprocess.run(command, cwd=ROOT, env=wanted | os.environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
