from html import escape

from villani.commands.measure.verdict import findings, headline
from villani.commands.pages import page as render


def test_the_page_shows_the_sentences_of_the_verdict(measurement_record, run_records):
    record = measurement_record(undecayed=3)
    page = render(run_records(record), {})
    assert all(f">{escape(sentence)}</p>" in page for sentence in [headline(record), *findings(record).values()])
    assert all(f"<h3>{escape(title)}</h3>" in page for title in findings(record))


def test_the_verdict_is_plain_text(measurement_record):
    record = measurement_record(undecayed=3)
    tensor = record.objective.undecayed[0].model_copy(update={"name": "<b>attn</b>.out_proj.bias"})
    objective = record.objective.model_copy(update={"undecayed": [tensor]})
    text = " ".join(findings(record.model_copy(update={"objective": objective})).values())
    assert "By its name, <b>attn</b>.out_proj.bias may be such a bias." in text
    assert "&" not in text
