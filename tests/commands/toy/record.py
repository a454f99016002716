from typing import Literal

from villani.work.records import Record


class ToyRecord(Record):
    kind: Literal["toy"] = "toy"
    command: str
    throws: list[int]


RECORDS = (ToyRecord,)
