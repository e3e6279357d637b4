"""Chromium for the story."""

from tests.browser.conftest import chromium, page

__all__ = ["chromium", "page"]
