"""E7 on the page of `villani study paper`: what decay changed of every quantity, in a table each."""

from villani.commands.paper.record import EffectRecord, PaperRecord
from villani.commands.recommend.record import NAMES
from villani.outwards import UNAVAILABLE, upper
from villani.report import elements
from villani.report.elements import note
from villani.report.estimates import Columns, rows_of
from villani.report.numbers import format_number

_NOTE = (
    "Changes from no decay, in pairs: same batches, blocks and probes. Intervals of 95 % over seeds and over blocks "
    "or groups, one at a time. Beyond error: ✓, all of a quantity at once; of the others, the least change that would "
    "have been so with probability 80 %. 1/(ηλ): the steps over which decay forgets, at the peak η, as a multiple of "
    "the run. Best: whether it may be the least of all, whatever decay goes towards. Values: mean ± standard error. "
    "Forgetting: nats per token above the start, on "
)


def effect_tables(record: PaperRecord) -> str:
    """All of E7, as HTML; nothing where it was not done."""
    if record.other_text is None:
        return ""
    tables = []
    for quantity in dict.fromkeys(e.quantity for e in record.effects):
        own = [e for e in record.effects if e.quantity == quantity]
        columns = _COLUMNS if own[0].kept is None else {**_COLUMNS, "best": lambda e: "may be" if e.kept else "no"}
        tables.append(note(f"Quantity: {quantity}") + elements.table(rows_of(own, columns)))
    return note(f"{_NOTE}{record.other_text.spec}; {record.other_text.words}.") + "".join(tables)


def _seen(effect: EffectRecord) -> str:
    if effect.change is None:
        return UNAVAILABLE
    return "✓" if effect.resolved else f"needs {upper(effect.detectable or 0.0, 2)}"


_COLUMNS: Columns = {
    "optimiser": lambda e: NAMES.get(e.optimizer, e.optimizer), "λ": "weight_decay",
    "1/(ηλ)": lambda e: format_number(e.memory, 2), "seeds": lambda e: str(e.seeds), "value": "value",
    "change": "change.interval", "beyond error": _seen,
}  # fmt: skip
