"""Rows, bytes, index, outbox and study membership: the only place that speaks SQL."""
