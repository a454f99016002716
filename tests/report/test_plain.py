"""What others wrote stays text on the page, in pictures too; and nothing runs that is not the page's own."""

import hashlib
import html
import json
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.report.test_page import embedded, ours, page_of
from villani.commands.pages import page as render
from villani.report.plain import drawn, guarded, written

HOSTILE = [
    "<a href='https://x.invalid'>link</a>",
    "<b>bold</b><br>",
    "$\\alpha$",
    "%{y} %{text}",
    "&lt;a&gt; &#60;",
    "\ue000\ue004",
]
OWN_TAGS = {"<br>", "<b>", "</b>", "<sup>", "</sup>", "<extra>", "</extra>"}


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from strings({name: getattr(value, name) for name in type(value).model_fields})
    elif isinstance(value, dict):
        for pair in value.items():
            yield from strings(list(pair))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from strings(one)


def spoiled(value, text):
    """A record whose every free string (no literal of its schema) ends with `text`."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return value.model_copy(
            update={
                name: getattr(value, name) + text if field.annotation is str else spoiled(getattr(value, name), text)
                for name, field in fields.items()
                if name not in ("name",) or not getattr(value, name).isdecimal()  # of a layer: a number
            }
        )
    if isinstance(value, list | tuple):
        return type(value)(spoiled(one, text) for one in value)
    return value


@given(st.text(st.sampled_from("<>&$%{}ab;/ \ue000\ue001\ue004\u2028"), max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_drawn_and_written_as_itself(text):
    shown = text.translate(dict.fromkeys(range(0xE000, 0xE005), "\ufffd"))
    assert written(guarded(text)) == shown
    [entities] = drawn([guarded(text)])
    assert not set("<>$%") & set(entities)
    assert html.unescape(entities) == shown


@pytest.mark.parametrize("text", HOSTILE)
def test_no_string_of_a_record_is_markup_in_a_picture(measurement_record, run_records, text):
    record = spoiled(measurement_record(undecayed=1, ray=("u", 2.0)), text)
    assert not set("<>&$%") & set("".join(strings(guarded(record))))
    page = ours(page_of(run_records, record, title=text))
    figures = json.loads(embedded(page))["figures"]
    shown = "".join(strings(figures))
    assert set(re.findall(r"<[^>]*>", shown)) <= OWN_TAGS
    assert "href" not in re.sub(r"&lt;.*?&gt;", "", shown)
    assert (
        html.escape(text.replace("\ue000", "\ufffd").replace("\ue004", "\ufffd")) in page or html.escape(text) in page
    )


class Scripts(HTMLParser):
    """Scripts, event handlers and the policy of a page, as a browser's parser sees them."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.texts, self.handlers, self.policy, self.kind = [], [], "", None

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.handlers += [name for name in named if name.startswith("on")]
        self.handlers += [value for value in named.values() if (value or "").strip().lower().startswith("javascript:")]
        if tag == "meta" and named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        if tag == "script":
            self.kind = named.get("type", "")
            assert "src" not in named

    def handle_data(self, data):
        if self.kind == "":
            self.texts.append(data)

    def handle_endtag(self, tag):
        if tag == "script":
            self.kind = None


def test_the_policy_names_the_scripts_of_the_page_and_nothing_else(demo_run):
    page = render(demo_run, {})
    found = Scripts()
    found.feed(page)
    assert not found.handlers
    assert len(found.texts) == 3
    hashes = {f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found.texts}
    policy = dict(part.strip().split(" ", 1) for part in found.policy.split(";"))
    assert set(policy["script-src"].split()) == hashes
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "\r" not in page
    assert "\0" not in page
