"""Hybrid prompts: where entities stand in a prompt, what the table keeps, and what goes to the server."""

import base64
import io
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage

from agents.context import Context
from agents.schemas import Request
from graphs.intent import graph
from prompts.template import Prompt
from tests.conftest import AS_OF
from tests.scripted_server import MODEL, NO_EMBEDS, ScriptedServer
from tools.adaptor import Adaptor, AdaptorShape, TrainedAdaptor, load_adaptor, save_adaptor
from tools.embedding import Embeddings
from tools.entities import EntitySource, EntityTable
from tools.errors import ModelFilesError, ServerError
from tools.llm import check_embeds

PROMPT = Prompt.model_validate(
    {
        "agent": "test",
        "version": "v1",
        "description": "a prompt of the tests",
        "fields": ["rows"],
        "lines": {"rows": {"begin": "Rows:\n", "each": "{{id}}: {{entity texts}} ({{note}})", "none": "(none)"}},
        "system": "Read.",
        "user": "{{rows}}",
    }
)
ROWS = [
    {"id": "h1", "texts": "white milk", "note": "often"},
    {"id": "h2", "texts": ["tea", "", "rye \ue001bread"], "note": ["once", "late"]},
    {"id": "h3", "texts": "", "note": "never"},
]


class Letters:
    """An embedder of two dimensions: how long a text is, and how many spaces it has."""

    name = "letters"

    def embed(self, texts: Sequence[str], progress: object = None) -> Embeddings:
        return np.array([[len(text), text.count(" ")] for text in texts], dtype=np.float32)


def trained(seed: int = 0, text: int = 2, tokens: int = 1) -> TrainedAdaptor:
    torch.manual_seed(seed)
    return TrainedAdaptor(Adaptor(AdaptorShape(text, 8, 4, tokens)), MODEL, "letters", f"{seed:064x}")


def test_as_text_entities_are_words_among_words() -> None:
    system, user = PROMPT.render({"rows": ROWS})
    assert (system.content, user.content) == (
        "Read.",
        "Rows:\nh1: white milk (often)\nh2: tea; rye bread (once; late)\nh3:  (never)",
    )


def test_as_hybrid_entities_are_parts_of_their_own() -> None:
    system, user = PROMPT.render({"rows": ROWS}, hybrid=True)
    assert system.content == "Read."
    assert user.content == [
        {"type": "text", "text": "Rows:\nh1: "},
        {"type": "text", "text": "[entity: white milk]", "entities": ["white milk"]},
        {"type": "text", "text": " (often)\nh2: "},
        {"type": "text", "text": "[entity: tea]; [entity: rye bread]", "entities": ["tea", "rye bread"]},
        {"type": "text", "text": " (once; late)\nh3:  (never)"},
    ]


def test_without_entities_a_hybrid_prompt_is_the_text() -> None:
    assert PROMPT.render({"rows": []}, hybrid=True)[1].content == "(none)"


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_table_keeps_what_the_adaptor_gives(tmp_path: Path, tokens: int) -> None:
    own = trained(tokens=tokens)
    table = EntityTable(tmp_path / "t.lmdb", own, Letters())
    texts = ["white milk", "tea", "white milk"]
    vectors = table.vectors(texts)
    assert vectors.shape == (3 * tokens, 4) and vectors.dtype == torch.bfloat16
    with torch.inference_mode():
        expected = own.adaptor(torch.from_numpy(Letters().embed(texts))).to(torch.bfloat16).flatten(0, 1)
    assert torch.equal(vectors, expected)
    assert len(table) == 2


def test_what_is_new_is_added_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    embed = Letters.embed
    monkeypatch.setattr(Letters, "embed", lambda self, texts, progress=None: asked.extend(texts) or embed(self, texts))
    table = EntityTable(tmp_path / "t.lmdb", trained(), Letters())
    before = table.vectors(["white milk"])
    table.add(["white milk", "tea", "tea"])
    assert asked == ["white milk", "tea"]
    assert torch.equal(table.vectors(["white milk"]), before)


def test_a_table_of_another_adaptor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.lmdb"
    EntityTable(path, trained(0), Letters()).add(["tea"])
    with pytest.raises(ModelFilesError, match=r"was made for .*delete it"):
        EntityTable(path, trained(1), Letters())


def test_embeddings_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    table = EntityTable(tmp_path / "t.lmdb", trained(text=3), Letters())
    with pytest.raises(ModelFilesError, match="reads embeddings of 3 dimensions, letters gives 2"):
        table.vectors(["tea"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    monkeypatch.setattr(
        Letters, "embed", lambda self, texts, progress=None: np.array([[1, 1], [bad, 1]], dtype=np.float32)
    )
    table = EntityTable(tmp_path / "t.lmdb", trained(), Letters())
    with pytest.raises(ModelFilesError, match=r"1 of 2 new entities have .* such as 'tea'"):
        table.add(["white milk", "tea"])
    assert len(table) == 1  # the sound one


def test_an_adaptor_is_for_one_model_and_one_embedder(tmp_path: Path) -> None:
    save_adaptor(trained().adaptor, tmp_path, {"model": "m", "embedder": "e"})
    assert load_adaptor(tmp_path, "m", "e").adaptor.shape == AdaptorShape(2, 8, 4)
    with pytest.raises(ModelFilesError, match="trained for the model m, this is other"):
        load_adaptor(tmp_path, "other", "e")
    with pytest.raises(ModelFilesError, match="trained for the embedding model e, this is other"):
        load_adaptor(tmp_path, "m", "other")
    with pytest.raises(ModelFilesError, match="recgpt train adaptor"):
        load_adaptor(tmp_path / "nowhere", "m", "e")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EntityTable:
    """The table of an adaptor that nobody trained, in the place of the one that a context names."""
    own = EntityTable(tmp_path / "t.lmdb", trained(), Letters())
    opened: list[EntitySource] = []
    monkeypatch.setattr("tools.llm.open_entities", lambda source: opened.append(source) or own)
    return own


class Seen(AsyncCallbackHandler):
    """What a trace gets to see of each call."""

    def __init__(self) -> None:
        self.messages: list[BaseMessage] = []

    async def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.messages += messages[0]


async def test_entities_go_to_the_server_as_embeddings_and_into_traces_as_words(
    context: Context, server: ScriptedServer, table: EntityTable
) -> None:
    seen = Seen()
    hybrid = context.model_copy(update={"representation": "hybrid"})
    state = await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=hybrid, config={"callbacks": [seen]})
    assert state["failures"] == [] and state["tags"]
    bodies = {body["response_format"]["json_schema"]["name"]: body for body in server.requests}
    history = {line.text for line in state["household"].history}
    for agent in ("planner", "arbiter"):
        parts = bodies[agent]["messages"][1]["content"]
        sent = [part["data"] for part in parts if part["type"] == "prompt_embeds"]
        assert len(sent) == (len(history) if agent == "planner" else len(state["personas"]))
        first = torch.load(io.BytesIO(base64.b64decode(sent[0])), weights_only=True)
        assert any(torch.equal(first[:1], table.vectors([text])) for text in history)
        assert not any(title in part.get("text", "") for part in parts for title in history)
    assert isinstance(bodies["expert"]["messages"][1]["content"], str)
    traced = json.dumps([message.content for message in seen.messages])
    assert "[entity: Baby Diapers, 100 ct]" in traced
    assert "prompt_embeds" not in traced and not any(data in traced for data in sent)


async def test_a_server_without_prompt_embeddings_is_told_by_name(
    context: Context, server: ScriptedServer, table: EntityTable
) -> None:
    server.embeds_refusal = NO_EMBEDS
    hybrid = context.model_copy(update={"representation": "hybrid"})
    with pytest.raises(ServerError, match="started without --enable-prompt-embeds"):
        await check_embeds(hybrid.endpoint("planner"))
    state = await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=hybrid)
    assert [failure.agent for failure in state["failures"]] == ["planner"]
    assert "representation=text" in state["failures"][0].reason
    assert {path for path in server.paths} == {"/tokenize"}  # found out before any question
    server.embeds_refusal = "hidden_size 4 does not match 32"
    with pytest.raises(ServerError, match=r"takes no input embeddings of .*: .*does not match 32"):
        await check_embeds(hybrid.endpoint("planner"))
    server.embeds_refusal, server.tokenizer = "", False
    with pytest.raises(ServerError, match=r"takes no input embeddings of .*: 404"):
        await check_embeds(hybrid.endpoint("planner"))
    server.tokenizer = True
    await check_embeds(hybrid.endpoint("planner"))
    server.separator = "\n\n\n\n"
    with pytest.raises(ServerError, match=r"between the parts of a message \(3 tokens, expected 2\)"):
        await check_embeds(hybrid.endpoint("planner"))


async def test_a_hundred_thousand_entities_are_cut_to_what_fits(
    small_dir: Path, context: Context, server: ScriptedServer, table: EntityTable
) -> None:
    events = pl.read_parquet(small_dir / "events.parquet")
    day = datetime(2017, 11, 13, 12)
    searches = pl.DataFrame(
        {"user_id": "h2", "timestamp": [day + timedelta(days=n % 2) for n in range(100_000)], "action": "search"}
    ).with_columns(query=pl.format("query number {}", pl.int_range(pl.len())))
    merged = pl.concat(
        [events, searches.cast(dict.fromkeys(["action"], events.schema["action"]))], how="diagonal_relaxed"
    )
    merged.cast(dict(events.schema)).select(events.columns).sort("user_id", "timestamp").write_parquet(
        small_dir / "events.parquet"
    )
    hybrid = context.model_copy(update={"representation": "hybrid"})
    state = await graph.ainvoke(Request(user_id="h2", as_of=AS_OF), context=hybrid)
    assert state["failures"] == []
    household = state["household"]
    assert len(household.history) == 60 and household.days
    assert {len(line.entities) for line in household.days} == {200}
    shown = {text for line in household.days for text in line.entities}
    assert state["history_lines_cut"] > 90_000 and len(shown) > 2_000
    assert "lines did not fit" in " ".join(state["degraded"])
    assert len(table) < 20_000  # what can't fit is not embedded either


async def test_an_item_without_a_title_is_no_entity(
    small_dir: Path, context: Context, server: ScriptedServer, table: EntityTable
) -> None:
    items = pl.read_parquet(small_dir / "items.parquet")
    blank = pl.when(pl.col("item_id") == "milk").then(pl.lit("\u200b")).otherwise(pl.col("title"))
    items.with_columns(title=blank).write_parquet(small_dir / "items.parquet")
    state = await graph.ainvoke(
        Request(user_id="h1", as_of=AS_OF), context=context.model_copy(update={"representation": "hybrid"})
    )
    assert state["failures"] == [] and state["tags"]
    parts = server.requests[0]["messages"][1]["content"]
    assert sum(part["type"] == "prompt_embeds" for part in parts) == 3


async def test_more_history_than_its_lines_show_is_told_day_by_day(
    journey_dir: Path, context: Context, server: ScriptedServer, table: EntityTable
) -> None:
    """Household 1385 has 343 lines: sixty of them are numbered, what else it bought stands in its days."""
    hybrid = context.model_copy(update={"dataset": journey_dir, "representation": "hybrid"})
    state = await graph.ainvoke(Request(user_id="1385", as_of=AS_OF), context=hybrid)
    household = state["household"]
    assert len(household.days) == 34
    assert len(household.history) == 60 and state["history_lines_cut"] == 0
    assert [line.day for line in household.days] == sorted((line.day for line in household.days), reverse=True)
    assert len({text for line in household.days for text in line.entities}) == 343
    whole = len(server.prompts("planner")[0]) // 4
    short = hybrid.model_copy(update={"planner_tokens": whole - 50})
    state = await graph.ainvoke(Request(user_id="1385", as_of=AS_OF), context=short)
    assert 0 < len(state["household"].days) < len(household.days)
    assert state["household"].days == household.days[: len(state["household"].days)]
    assert state["history_lines_cut"] > 0
