"""Builds the server from settings and hands functions to the parts that need to call upward."""
