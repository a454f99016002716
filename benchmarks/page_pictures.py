"""Pictures of pages as a browser shows them, for docs/figures/pages: desktop, phone, dark, and printed.

    python -m benchmarks.page_pictures RUN [RUN …]

Each run folder's page is made anew in a folder of its own; its pictures are named after the folder's command. Prints
each page's size, what overflows a phone's width, and what axe-core finds where it is installed.
"""

import argparse
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.browser import Browser

from villani.commands.pages import write_report

FIGURES = Path(__file__).parents[1] / "docs" / "figures" / "pages"
LOOKS = {"desktop": (1280, False), "phone": (390, False), "dark": (1280, True), "print": (690, False)}
TALL = {"desktop": 1250, "phone": 1700, "dark": 1250, "print": 1000}  # pixels of a picture, at most


def look(browser: Browser, run: Path, folder: Path) -> None:
    """Write the pictures of a run's page, and print what is measured of it."""
    copy = folder / run.name
    copy.mkdir()
    for name in ("records.json", "cost.json"):
        if (run / name).exists():
            shutil.copy(run / name, copy)
    page = write_report(copy)
    found = {}
    for name, (width, dark) in LOOKS.items():
        browser.open(page, width, dark=dark)
        if name == "print":
            browser.call("Emulation.setEmulatedMedia", media="print")
            browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        browser.picture(FIGURES / f"{run.name}-{name}.webp", quality=42, most=TALL[name])
        browser.call("Emulation.setEmulatedMedia", media="")
        found[name] = (browser.evaluate("document.documentElement.scrollWidth - innerWidth"), len(browser.errors))
    over, errors = (max(one[k] for one in found.values()) for k in (0, 1))
    print(f"{run.name}: {page.stat().st_size:,} bytes, {over} px too wide, {errors} errors, axe: {violations(browser)}")


def violations(browser: Browser) -> str:
    """What axe-core finds on the page that is open."""
    axe = find_spec("axe_playwright_python")
    if axe is None or axe.origin is None:
        return "not installed"
    browser.evaluate(Path(axe.origin).with_name("axe.min.js").read_text(encoding="utf-8") + ";0")
    found = browser.evaluate("axe.run().then(all => all.violations.map(one => `${one.id} (${one.impact})`))")
    return ", ".join(found) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    FIGURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "profile")
        for run in parser.parse_args().runs:
            look(browser, run, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
