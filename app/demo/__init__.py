"""`isocenter demo`: everything on one machine, one order played through its life, then serving."""
