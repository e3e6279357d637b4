"""The life of one order: every step that joins two standards is a function here."""
