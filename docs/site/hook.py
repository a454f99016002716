"""Pages of the site that are made of other files: README, the notebook, the public names, settings and schemas.

Nothing is written by hand twice: the home page is README.md, the Python reference lists the names of
`villani/__init__.pyi`, that of options the fields of settings, that of records the published JSON schemas.
"""

import ast
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
CARRIED = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"examples/{p.name}" for p in ROOT.glob("examples/*.py")),
]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {
        "index.md": re.sub(r"(?<=\()docs/", "", (ROOT / "README.md").read_text(encoding="utf-8")),
        "notebook.md": notebook(ROOT / "docs" / "notebook.ipynb"),
        "reference/python.md": python_reference(),
        "reference/options.md": option_reference(),
        "reference/records.md": record_reference(),
    }
    for name in CARRIED:
        text = (ROOT / name).read_text(encoding="utf-8")
        made[page_of(name)] = text if name.endswith(".md") else f"# {name}\n\n```python\n{text}```\n"
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def page_of(name: str) -> str:
    """The page of the site that shows a file of the repository."""
    return name if name.endswith(".md") else f"{name.removesuffix('.py')}.md"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to where the site has them, and citations of the theory to its page."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri == "theory.md":
        markdown = typeset(markdown)

    def target(match: re.Match[str]) -> str:
        path, anchor = match[2], match[3] or ""
        return f"]({up}{page_of(path)}{anchor})" if path in CARRIED else match[0]

    markdown = re.sub(r"\]\(((?:\.\./)*)([\w./-]+)(#[\w-]+)?\)", target, markdown)
    markdown = re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", markdown)
    return markdown if page.file.src_uri == "notebook.md" else markdown.replace("](notebook.ipynb)", "](notebook.md)")


def typeset(text: str) -> str:
    """Plain-text formulas with their indices below and their exponents above the line; code is left as it is."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        part, before = parts[index], ""
        while part != before:  # from the innermost braces outwards
            before = part
            part = re.sub(r"\\?_(?:\{([^{}]*)\}|(LS|[^\s{}<(]))", lambda m: f"<sub>{m[1] or m[2]}</sub>", part)
            part = re.sub(r"\^(?:\{([^{}]*)\}|([^\s{}<(]))", lambda m: f"<sup>{m[1] or m[2]}</sup>", part)
        parts[index] = part
    return "`".join(parts)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make every "THEORY.md §n" of running text a link to that section."""
    theory = "../" * page.file.src_uri.count("/") + "theory.html"
    anchors = sections()

    def link(match: re.Match[str]) -> str:
        anchor = anchors.get(match[1])
        return f'<a href="{theory}#{anchor}">{match[0]}</a>' if anchor else match[0]

    if page.file.src_uri == "theory.md":
        return content
    return re.sub(r"(?<!>)THEORY\.md §(\d(?:\.\d)?)", link, content)


def sections() -> dict[str, str]:
    """Section number → anchor of the page of theory, as the toc extension makes them."""
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#{2,3} ((\d(?:\.\d)?)\.? .*)$", text, re.MULTILINE)
    return {number: slug(heading) for heading, number in headings}


def slug(heading: str) -> str:
    """The anchor of a heading."""
    from pymdownx.slugs import slugify

    return str(slugify(case="lower")(heading, "-"))


def on_post_build(config: MkDocsConfig) -> None:
    """Lay plotly's script beside the notebook, if it has figures: they are drawn from their data."""
    if "vnd.plotly" not in (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"):
        return
    import plotly

    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copy(source, Path(config.site_dir) / "assets" / "plotly.min.js")


def notebook(path: Path) -> str:
    """A notebook as Markdown: code, and the outputs that were saved with it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts, figures = [], 0
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data: dict[str, Any] = output.get("data", {})
            if "application/vnd.plotly.v1+json" in data:
                figures += 1
                parts.append(figure(data["application/vnd.plotly.v1+json"], figures))
            elif "image/svg+xml" in data:
                parts.append('<div class="output">' + re.sub(r"\n\s*", " ", "".join(data["image/svg+xml"])) + "</div>")
            elif "text/html" in data:
                parts.append('<div class="output">' + re.sub(r"\n\s*", " ", "".join(data["text/html"])) + "</div>")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append("[Download the notebook](notebook.ipynb)")
    return "\n\n".join(parts) + "\n"


def figure(data: dict[str, Any], number: int) -> str:
    """A plotly figure, drawn in the browser by the script that lies beside the page."""
    script = '<script src="assets/plotly.min.js"></script>' if number == 1 else ""
    settings = {"displayModeBar": False, "responsive": True}
    drawn = json.dumps({"data": data["data"], "layout": data["layout"] | {"autosize": True}, "config": settings})
    drawn = drawn.replace("</", "<\\/")  # no end of the script inside it
    place = f'<div id="figure-{number}" class="figure" role="img" aria-label="figure {number}"></div>'
    return f"{script}{place}<script>Plotly.newPlot('figure-{number}', {drawn})</script>"


def public_names(stub: Path) -> list[tuple[str, str]]:
    """(module, name) of every name of a stub."""
    nodes = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name) for node in nodes for alias in node.names if alias.name != "theory"]


def python_reference() -> str:
    """Every public name, from its docstring, and the modules of theory."""
    parts = [
        "# Python",
        "Every public name of `villani`, from its docstring. Each is imported when it is first used.",
    ]
    names = sorted(public_names(ROOT / "src/villani/__init__.pyi"), key=lambda pair: pair[1].lower())
    parts += [documented(f"{module}.{name}", f"villani.{name}") for module, name in names]
    modules = [f"villani.theory.{name}" for _, name in public_names(ROOT / "src/villani/theory/__init__.pyi")]
    parts += [documented(name, name) for name in modules]
    return "\n\n".join(parts) + "\n"


def documented(place: str, name: str) -> str:
    """What mkdocstrings makes a section of, under the name that users import."""
    return f"::: {place}\n    options:\n      heading_level: 2\n      heading: {name}\n      toc_label: {name}"


def option_reference() -> str:
    """Every command with its options, from the fields of its settings."""
    from villani.commands.option import forms
    from villani.commands.registry import COMMANDS

    parts = [
        "# Options of every command",
        "What `villani COMMAND --help` says, of every command. Exit codes: 0 done, 2 bad input, 1 anything else.",
    ]
    for command in COMMANDS:
        settings = command.settings
        text, _, example = (settings.__doc__ or "").partition("Example: ")
        parts += [f"## villani {command.name}", escaped(re.sub(r"\n *", "\n", text.strip()))]
        parts += [f"```sh\n{' '.join(example.split())}\n```"] if example else []
        groups: dict[str, list[str]] = {}
        for form in forms(settings).values():
            if form.option.hidden:
                continue
            default = form.option.default or (
                "required" if form.default is ... else " ".join(form.write(form.default)[1:]) or "no"
            )
            name = form.name.upper() if form.option.argument else ", ".join(form.flags)
            rows = groups.setdefault(form.option.group or "Arguments", ["| option | | default |", "|---|---|---|"])
            rows.append(f"| `{name}` | {cell(form.option.help)} | {cell(str(default))} |")
        parts += [f"**{group}**\n\n" + "\n".join(rows) for group, rows in groups.items()]
    return "\n\n".join(parts) + "\n"


def record_reference() -> str:
    """Every kind of record with its fields, from the published schemas."""
    parts = [
        "# Records",
        "A run folder holds `records.json`, a list of records, and `cost.json`; `--json` prints the same records. JSON"
        " schemas: [measurement](../schema/measurement.schema.json), [all](../schema/run.schema.json).",
    ]
    schema = json.loads((ROOT / "docs/schema/run.schema.json").read_text(encoding="utf-8"))
    for name, definition in sorted(schema["$defs"].items()):
        if "properties" not in definition:
            continue
        rows = ["| field | type | |", "|---|---|---|"]
        for field, value in definition["properties"].items():
            rows.append(f"| `{field}` | {kind(value)} | {cell(value.get('description', ''))} |")
        parts += [f"## {name}", escaped(definition.get("description", "")), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def kind(value: dict[str, Any]) -> str:
    """The type of a field of a schema, with links to those that have a section."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{slug(name)})"
    if "anyOf" in value or "oneOf" in value:
        return " or ".join(kind(one) for one in value.get("anyOf", value.get("oneOf")))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if value.get("type") == "array":
        return f"list of {kind(value.get('items', {}))}"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"table of {kind(value['additionalProperties'])}"
    return str(value.get("type", "any"))


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return escaped(" ".join(text.split())).replace("|", "\\|")


def escaped(text: str) -> str:
    """Text with no markup of its own."""
    return re.sub(r"([*_])", r"\\\1", html.escape(text, quote=False))
