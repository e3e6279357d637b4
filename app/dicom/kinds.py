"""Modalities of series by what they hold (PS3.3 C.7.3.1.1.1)."""

from __future__ import annotations

from typing import Final

NOT_IMAGES: Final = frozenset({"SR", "KO", "PR", "DOC", "SEG", "RTSTRUCT", "REG", "FID", "AU", "ECG"})
"""Series that are made from images or beside them: they start no step and end none."""
