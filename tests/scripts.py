"""The programs of scripts/ as modules, for tests of what they make."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    """One of them by its name, with the modules beside it in reach, as when it is run."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    specification = importlib.util.spec_from_file_location(f"isocenter_scripts_{name}", FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look for their module by its name.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
