"""The demo writes records of other commands only."""

RECORDS: tuple[type, ...] = ()
