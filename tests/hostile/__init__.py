"""The gateway under requests that want more than they may have; see suite.py."""
