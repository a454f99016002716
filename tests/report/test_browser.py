"""Pages as a browser shows them: no errors, nothing cut on a phone, legible on light and dark, and usable by keyboard.

Skipped where there is no Chromium. Where axe-core is installed (from the package axe-playwright-python), it is run too.
"""

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser import Browser, program
from tests.commands.synthetic import made
from villani.commands.audit.record import AuditRecord
from villani.commands.constants.record import ModelConstantsRecord, ModelPointRecord
from villani.commands.content import run_records as schema
from villani.commands.exact.record import ConstantRecord, ExactRecord, PointRecord
from villani.commands.pages import page as render
from villani.commands.registry import COMMANDS

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium on this machine")
RESULTS = Path(__file__).parents[2] / "docs" / "results"
LARGEST = 1_300_000  # bytes of a page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    own = Browser(tmp_path_factory.mktemp("profile"))
    yield own
    own.close()


def every_kind():
    """A run that holds a record of every kind that the demo has not, with a value in every field."""
    bounds = [made(ConstantRecord, id=name, log10=log10) for name, log10 in (("C8", 3.5), ("C3", 11308.6))]
    truth = made(ConstantRecord, id="truth", name="computed C_P", log10=1.0)
    own = {
        ModelConstantsRecord: {"points": [made(ModelPointRecord, constants=bounds)]},
        ExactRecord: {"points": [made(PointRecord, constants=[*bounds, truth])]},
    }
    kinds = dict.fromkeys(kind for command in COMMANDS if command.name != "measure" for kind in command.records)
    audit = json.loads((RESULTS / "audit-ptb-model.json").read_text(encoding="utf-8")) | {"cost": None}
    records = [
        audit if kind is AuditRecord else made(kind, **own.get(kind, {})).model_dump(mode="json") for kind in kinds
    ]
    content = {"schema_version": 1, "villani": "0.1.0", "title": "villani " + "a-long-name." * 12}
    return schema().model_validate(content | {"records": records})


@pytest.fixture
def pages(tmp_path, demo_run):
    own = {"demo": demo_run, "every kind": every_kind()}
    paths = {name: tmp_path / f"{name}.html" for name in own}
    for name, records in own.items():
        paths[name].write_text(render(records, {}), encoding="utf-8")
    return paths


OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true; });"
CUT = """[...document.querySelectorAll('.chart text')].filter(text => {
  const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
  return own.left < all.left - 1.5 || own.right > all.right + 1.5;
}).map(text => text.textContent)"""
WIDER = """[...document.querySelectorAll('.scroll')]
  .filter(box => box.firstElementChild.offsetWidth > box.clientWidth + 1).length"""
BOXES = """[...document.querySelectorAll('.scroll')]
  .map(box => [box.tabIndex, box.getAttribute('aria-label').length])"""
RULES = """axe.run().then(all =>
  all.violations.map(one => [one.id, one.impact, one.nodes.map(node => node.html.slice(0, 90))]))"""
SHARES = """[...document.querySelectorAll('.chart')].map(chart =>
  (chart.querySelector('clipPath rect').width.baseVal.value - 16) / chart.viewBox.baseVal.width)"""
CONTRAST = """(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let one = node; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)' && colour !== 'transparent') return channels(colour);
    }
    return [255, 255, 255];
  };
  const poor = {};
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim());
    if (!own || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), svg = node.closest('svg');
    const front = channels(svg ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(svg ? svg.parentElement : node))].sort((a, b) => b - a);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5 && !(svg && style.stroke === 'none')) poor[node.className + ' ' + node.tagName] = ratio.toFixed(2);
  }
  return poor;
})()"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_and_all_is_legible(browser, pages, width, dark):
    for name, page in pages.items():
        browser.open(page, width, dark=dark)
        browser.evaluate(OPEN + "new Promise(done => setTimeout(done, 60))")
        assert browser.errors == [], name
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
        assert browser.evaluate(CUT) == [], name
        shares = browser.evaluate(SHARES)
        assert len(shares) > 5, name
        assert min(shares) >= 0.6, (name, shares)
        assert browser.evaluate(CONTRAST) == {}, name


def test_axe_finds_nothing(browser, pages):
    found = find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-core is not installed")
    axe = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    for name, page in pages.items():
        browser.open(page, 390)
        browser.evaluate(OPEN)
        browser.evaluate(axe + ";0")
        violations = browser.evaluate(RULES)
        assert violations == [], name


def test_headings_do_not_skip_a_level_and_boxes_that_scroll_can_be_reached(browser, pages):
    for name, page in pages.items():
        browser.open(page, 390)
        browser.evaluate(OPEN)
        levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), name
        boxes = browser.evaluate(BOXES)
        assert boxes, name
        assert all(index == 0 and label > len("table of ") for index, label in boxes), name


def test_sliders_say_their_value_and_an_address_keeps_it(browser, pages):
    browser.open(pages["demo"], fragment="#decay=0.5&temperature=0.01")
    sentence = browser.evaluate("document.getElementById('live-sentence').textContent")
    assert sentence.startswith("At λ = 0.5, s = 0.01: Ψ = ")
    read = "document.getElementById('decay-slider').getAttribute('aria-valuetext')"
    assert browser.evaluate(read) == "λ = 0.5"
    before = browser.evaluate("document.getElementById('figure-parts').innerHTML")
    browser.evaluate(
        "(one => { one.value = 2; one.dispatchEvent(new Event('input')); })(document.getElementById('decay'))"
    )
    assert browser.evaluate(read) == "λ = 2"
    assert browser.evaluate("location.hash") == "#decay=2&temperature=0.01"
    assert browser.evaluate("document.getElementById('figure-parts').innerHTML") != before
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate("location.hash") == ""
    browser.open(pages["demo"], fragment="#decay=-1&temperature=nothing")  # no place on the sliders
    assert browser.evaluate(read) == "λ = 0.1"
    assert browser.errors == []


def test_what_is_downloaded_are_the_records(browser, pages, demo_run):
    browser.open(pages["demo"])
    browser.evaluate(
        "window.saved = []; const make = URL.createObjectURL;"
        "URL.createObjectURL = blob => { saved.push(blob); return make(blob); };"
        "HTMLAnchorElement.prototype.click = () => {}; document.getElementById('json').click();"
    )
    wait = "new Promise(done => setTimeout(done, 200)).then(() => saved.at(-1).text())"
    assert json.loads(browser.evaluate(wait)) == [record.model_dump(mode="json") for record in demo_run.records]
    browser.evaluate("document.getElementById('csv').click()")
    lines = browser.evaluate(wait).splitlines()
    assert lines[0] == "name,value"
    [line] = [line for line in lines if line.startswith("1.loss.value,")]
    assert float(line.split(",")[1]) == demo_run.records[1].loss.value
    assert browser.errors == []


def test_a_page_is_printed_whole(browser, pages, tmp_path):
    """Printing unfolds what is folded, draws pictures as wide as a sheet, and cuts no table."""
    for name, page in pages.items():
        browser.open(page, 1280)
        browser.pdf(tmp_path / "page.pdf")
        assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0, name
        browser.open(page, 690)
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.evaluate(OPEN + WIDER) == 0, name
        browser.call("Emulation.setEmulatedMedia", media="")


def test_pages_are_small(pages):
    assert all(page.stat().st_size < LARGEST for page in pages.values())
