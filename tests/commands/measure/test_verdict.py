import math
import re
from html import escape

from villani.commands.measure.verdict import findings, headline
from villani.commands.pages import page as render


def test_the_page_shows_the_sentences_of_the_verdict(measurement_record, run_records):
    record = measurement_record(undecayed=3)
    page = render(run_records(record), {})
    assert f'<h2 class="headline">{escape(headline(record))}</h2>' in page
    assert all(f">{escape(sentence)}</p>" in page for sentence in findings(record).values())
    assert all(f"<h3>{escape(title)}</h3>" in page for title in findings(record))


def test_the_verdict_is_plain_text(measurement_record):
    record = measurement_record(undecayed=3)
    tensor = record.objective.undecayed[0].model_copy(update={"name": "<b>attn</b>.out_proj.bias"})
    objective = record.objective.model_copy(update={"undecayed": [tensor]})
    text = " ".join(findings(record.model_copy(update={"objective": objective})).values())
    assert "By its name, <b>attn</b>.out_proj.bias may be such a bias." in text
    assert "&" not in text


def test_it_ends_in_what_to_do_next_about_lambda(measurement_record):
    measured = measurement_record()
    words = findings(measured)["What to do next about λ"]
    psi, design = measured.psi[0], measured.design
    rms = math.sqrt(measured.decayed_norm_squared / measured.objective.decayed_parameters)
    assert f"√(s/2λ) = {math.sqrt(psi.temperature / (2 * psi.weight_decay)):.2g}" in words
    assert f"their rms of {rms:.2g}" in words
    gap = measured.naive_gradient_norm_squared.value - measured.gradient_norm_squared.value
    noise = max(gap, 0.0) * design.sequences * (design.block - 1)
    (told,) = re.findall(r"--gradient-noise ([0-9.]+) ", words)
    assert float(told) == float(f"{noise:.2g}")
