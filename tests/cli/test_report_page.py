"""A report as a person sees it, in a headless Chromium: light and dark, wide and as narrow as a telephone."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import looks
from tests.cli.ctl import ctl
from tests.cli.every_kind import HOSTILE, fill, fill_many
from tests.support import chromium
from tests.support.chromium import Chromium

pytestmark = pytest.mark.skipif(not chromium.is_there(), reason="needs Debian's chromium")
LOOKS = [
    ("one", "light", 360),
    ("one", "dark", 1200),
    ("kinds", "dark", 360),
    ("many", "light", 360),
    *(
        pytest.param(*look, marks=pytest.mark.long)
        for look in (
            ("kinds", "light", 1200),
            ("one", "light", 1200),
            ("one", "dark", 360),
            ("kinds", "light", 360),
            ("kinds", "dark", 1200),
        )
    ),
]


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, Path]]:
    """Pages of one pivot, of one of each kind, and of many."""
    with tempfile.TemporaryDirectory(prefix="pivotd-") as name:
        directory = Path(name)
        found = {page: directory / f"{page}.html" for page in ("one", "kinds", "many")}
        for state_dir, story in (("few", fill(directory / "few")), ("lots", fill_many(directory / "lots", 12))):
            (directory / state_dir).mkdir()
            asyncio.run(story)
        for page, state_dir, chosen in (
            ("one", "few", ["three-hours"]),
            ("kinds", "few", ["--domain", "web1"]),
            ("many", "lots", ["--since", "2026-01-01"]),
        ):
            answer = ctl("--offline", directory / state_dir, "report", *chosen, "-o", found[page])
            assert (answer.status, answer.stderr) == (0, "")
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with tempfile.TemporaryDirectory(prefix="chromium-") as name, Chromium(Path(name)) as started:
        yield started


@pytest.mark.parametrize(("page", "scheme", "width"), LOOKS)
def test_it_can_be_read(browser: Chromium, pages: dict[str, Path], page: str, scheme: str, width: int) -> None:
    """Nothing beyond the edge or out of its box, enough contrast everywhere, no complaint, and nothing is loaded."""
    browser.open(pages[page], width=width, scheme=scheme)
    browser.run(looks.OPEN_ALL)
    browser.unroll()
    assert browser.run(looks.TOO_WIDE) == []
    assert browser.run(looks.OUT_OF_THEIR_BOXES) == []
    assert browser.run(looks.BROKEN_WORDS) == []
    measured, pale = browser.run(looks.PALE)
    assert measured > 100
    assert pale == []
    assert browser.run(looks.NOT_FOR_EVERYBODY) == []
    assert browser.requests == [pages[page].as_uri()]
    assert browser.complaints == []


def test_both_schemes_say_the_same_and_look_different(browser: Chromium, pages: dict[str, Path]) -> None:
    """The same text, on another ground."""
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(pages["kinds"], scheme=scheme)
        browser.run(looks.OPEN_ALL)
        seen[scheme] = browser.run(looks.TEXT), browser.run("getComputedStyle(document.body).backgroundColor")
    assert seen["light"][0] == seen["dark"][0]
    assert "The data is in the new image." in seen["light"][0]
    assert [seen["light"][1], seen["dark"][1]] == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]


def test_a_short_pause_is_seen(browser: Chromium, pages: dict[str, Path]) -> None:
    """6 ms in 3 hours: a mark of some pixels on the scale of the whole, and most of the one below it."""
    browser.open(pages["one"], width=360)
    tick = browser.run("document.querySelector('.strip .tick').getBoundingClientRect().x")
    whole = browser.run("document.querySelector('.strip').getBoundingClientRect().right")
    assert whole - 5 < tick < whole + 1
    wide = "document.querySelector('.strip .paused').getBoundingClientRect().width"
    assert browser.run(wide) > 200
    bars = "[...document.querySelectorAll('td.bar .paused')]"
    seen = browser.run(
        f"{bars}.map(one => one.getBoundingClientRect().width + parseFloat(getComputedStyle(one).strokeWidth))"
    )
    assert 1.5 < seen[0] < 3 < 50 < seen[1]


def test_names_are_text(browser: Chromium, pages: dict[str, Path]) -> None:
    """Names with markup are shown letter by letter, and what cannot be seen by its number; nothing of them comes alive."""
    browser.open(pages["kinds"])
    browser.run(looks.OPEN_ALL)
    text = browser.run(looks.TEXT)
    for name in HOSTILE:
        assert "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in name) in text
    assert browser.run(looks.STRANGE) == 0
    assert not any(told["method"] == "Page.javascriptDialogOpening" for told in browser.events)


def test_nothing_could_be_loaded_or_run(browser: Chromium, pages: dict[str, Path]) -> None:
    """If markup got in all the same, the page's policy would stop it: no request, no script, no style."""
    browser.open(pages["one"])
    browser.run(
        "document.addEventListener('securitypolicyviolation', told => (window.stopped ??= []).push(told.effectiveDirective))"
    )
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x><p style=color:red>x</p>')"
    )
    browser.run(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1'; document.body.append(one) })()"
    )
    stopped = browser.run("new Promise(done => setTimeout(() => done([...new Set(window.stopped)].sort()), 50))")
    assert stopped == ["img-src", "script-src-elem", "style-src-attr"]
    assert browser.run("window.ran === undefined")


def test_a_link_opens_the_pivot_to_which_it_leads(browser: Chromium, pages: dict[str, Path]) -> None:
    """Many pivots are folded, and the overview leads into them."""
    browser.open(pages["many"])
    assert browser.run("document.querySelectorAll('article > details[open]').length") == 0
    browser.run("document.querySelector('.many tbody tr:nth-child(9) a').click()")
    opened = "[...document.querySelectorAll('article > details[open]')].map(one => one.lastChild.id)"
    assert browser.run(f"new Promise(done => requestAnimationFrame(() => done({opened})))") == ["pivot-P0009"]


def test_paper_has_everything(browser: Chromium, pages: dict[str, Path]) -> None:
    """Printed, also in a dark scheme: dark on white, and what is folded on the screen is there."""
    browser.open(pages["one"], width=800, scheme="dark", media="print")
    browser.unroll()
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.querySelector('.records td').checkVisibility()")
    assert browser.run(looks.PALE)[1] == []
    assert browser.ask("Page.printToPDF")["data"]
