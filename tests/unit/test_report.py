"""The report's page, as text and in a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agents.context import Context
from agents.schemas import Recommendation, Request
from graphs.recommend import graph
from recgpt.report import write_report
from tests.conftest import AS_OF
from tests.scripted_server import Reply, ScriptedServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if (values.get("href") or "").startswith("#"):
            self.links.append((values["href"] or "")[1:])
        elif values.get("href") or values.get("src"):
            self.outside.append(str(values))
        if tag == "script":
            self.outside.append("script")


@pytest.fixture
async def result(context: Context) -> Recommendation:
    settings = context.model_copy(update={"judge": True})
    return Recommendation.model_validate(await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=settings))


async def test_every_claim_links_to_something_on_the_page(result: Recommendation, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [result, result])
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.outside == []  # self-contained
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    for item in result.items:
        assert item.title in text and item.explanation and item.explanation.split(",")[0] in text
    for line in result.household.history:
        assert f'id="u1-{line.id}"' in text


async def test_hostile_text_is_shown_not_run(result: Recommendation, tmp_path: Path) -> None:
    item = result.items[0].model_copy(update={"title": "<script>alert(1)</script>", "explanation": "<img src=x>"})
    write_report(tmp_path / "r.html", [result.model_copy(update={"items": [item]})])
    assert Page((tmp_path / "r.html").read_text()).outside == []


async def test_what_failed_is_on_the_page(context: Context, server: ScriptedServer, tmp_path: Path) -> None:
    server.answer = lambda name, body: Reply("nonsense")
    state = await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=context)
    write_report(tmp_path / "r.html", [Recommendation.model_validate(state)])
    text = (tmp_path / "r.html").read_text()
    for part in ("Less than asked for", "no personas", "channel habit", "made of the facts", "rejected answers"):
        assert part in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
async def test_a_browser_shows_the_page(result: Recommendation, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [result])
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    anchor = f"file://{tmp_path / 'r.html'}#u1-{result.personas[0].evidence[0].id}"
    picture = tmp_path / "page.png"
    subprocess.run(
        [CHROMIUM, *flags, "--window-size=1100,2400", f"--screenshot={picture}", anchor],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert picture.stat().st_size > 50_000
    dom = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", anchor], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert re.search(r"<h2>Household h1</h2>", dom)
    assert '<b class="Superior">Superior</b>' in dom
