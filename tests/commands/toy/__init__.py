"""A command of four small files, as `test_registry.py` adds it."""
