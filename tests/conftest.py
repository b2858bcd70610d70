"""Shared fixtures, and the guard: no test may connect to anything but this machine."""

from __future__ import annotations

import io
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import settings

from agents.context import Context
from agents.schemas import CallRecord, ProposedTag, Tag
from eval.splits import Case
from eval.tags import TagRun
from tests.scripted_server import MODEL, ScriptedServer
from tools.dataset import Dataset, DatasetInfo, open_dataset, write_dataset
from tools.logs import configure_logging

ROOT = Path(__file__).parents[1]
AS_OF = datetime(2017, 11, 17, 9, 0)

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def is_loopback(address: object) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = str(address[0])
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> Iterator[None]:
    """Refuse every connection to another machine, in every test."""
    refused: list[object] = []
    real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    patch = pytest.MonkeyPatch()
    for name, function in real.items():

        def guarded(self: socket.socket, *args: object, _function: object = function) -> object:
            if self.family != socket.AF_UNIX and not is_loopback(args[-1]):
                refused.append(args[-1])
                raise AssertionError(f"a test tried to reach {args[-1]!r}")
            return _function(self, *args)  # type: ignore[operator]

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()
    assert refused == []  # also where somebody swallowed the refusal


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings and no tracing from the shell that runs the tests."""
    import os

    for name in os.environ:
        if name.startswith(("RECGPT_", "LANGSMITH_", "LANGCHAIN_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def quiet_log() -> None:
    configure_logging(io.StringIO())


@pytest.fixture(scope="session")
def journey_dir() -> Path:
    """The real data set as `make data` prepares it with the code under test: embedding its titles takes a minute."""
    directory = ROOT / "data" / "completejourney"
    assert (directory / "index").is_dir(), "run `make data` first"
    return directory


@pytest.fixture(scope="session")
def journey(journey_dir: Path) -> Dataset:
    return open_dataset(journey_dir)


ITEMS = [
    ("milk", "Store Brand White Milk, 1 gal", ["Grocery", "Milk", "White Milk"], 2.99),
    ("bread", "White Bread, 20 oz", ["Grocery", "Bread", "White Bread"], 1.99),
    ("diapers", "Baby Diapers, 100 ct", ["Drugstore", "Baby", "Baby Diapers"], 24.99),
    ("formula", "Infant Formula, 13 oz", ["Drugstore", "Baby", "Infant Formula"], 14.99),
    ("turkey", "Store Brand Whole Turkey", ["Meat", "Turkey", "Whole Turkeys"], 19.5),
    ("pumpkin", "Store Brand Canned Pumpkin, 15 oz", ["Grocery", "Baking", "Canned Pumpkin"], 1.5),
    ("pizza", "Frozen Pizza, 10 oz", ["Grocery", "Frozen Pizza", "Frozen Pizza"], 3.5),
    ("soap", "Dish Soap, 24 oz", ["Household", "Cleaning", "Dish Soap"], 2.5),
]


def write_small_dataset(directory: Path, extra_events: list[tuple[str, datetime, str]] = []) -> Path:  # noqa: B006
    """A shop of eight items and three households, of which `new` has no event."""
    bought = [
        ("h1", datetime(2017, 10, 1 + 7 * week, 18), item) for week in range(4) for item in ("milk", "bread", "diapers")
    ]
    bought += [("h1", datetime(2017, 11, 14, 18), "formula"), ("h2", datetime(2017, 11, 10, 12), "pizza")]
    bought += [("h2", datetime(2017, 11, 12, 12), "soap"), *extra_events]
    tables = {
        "items": pl.DataFrame(
            [(i, title, path, None, price, None) for i, title, path, price in ITEMS],
            schema=["item_id", "title", "category", "brand", "price", "attributes"],
            orient="row",
        ),
        "users": pl.DataFrame(
            {
                "user_id": ["h1", "h2", "new"],
                "profile": ["Age 25 to 34, household of 3, 1 child.", None, None],
                "region": ["Tianjin", None, None],
            }
        ),
        "events": pl.DataFrame(
            [(u, t, "purchase", i, None, f"{u}-{t:%m%d}", 1.0, 2.0) for u, t, i in bought],
            schema=["user_id", "timestamp", "action", "item_id", "query", "session_id", "quantity", "value"],
            orient="row",
        ),
        "signals": pl.DataFrame(
            {
                "start": [datetime(2017, 11, 13), datetime(2017, 11, 13), datetime(2017, 12, 1)],
                "end": [datetime(2017, 11, 20), datetime(2017, 11, 20), datetime(2017, 12, 8)],
                "kind": ["promotion"] * 3,
                "region": [None, "Tianjin", None],
                "text": ["Mailer: turkeys", "Local fair", "Future sale"],
                "categories": [["Whole Turkeys"], [], []],
                "user_ids": [["h1"], None, None],
            }
        ),
    }
    info = DatasetInfo(
        name="small", locale="en_US", time_zone="UTC", source="made by the tests", licence="none", counts={}
    )
    write_dataset(directory, info, tables)
    return directory


@pytest.fixture
def small_dir(tmp_path: Path) -> Path:
    return write_small_dataset(tmp_path / "small")


@pytest.fixture
def small(small_dir: Path) -> Dataset:
    return open_dataset(small_dir)


def tag_run(
    case: Case, pool: Sequence[ProposedTag] = (), tags: Sequence[Tag] = (), calls: Sequence[CallRecord] = ()
) -> TagRun:
    """A household's run as the evaluation keeps it, of which only some parts matter."""
    return TagRun(
        user_id=case.user_id,
        as_of=case.as_of,
        settings={},
        target=sorted(case.target),
        bought=sorted(case.bought),
        history=[],
        personas=[],
        shelves=[],
        pool=list(pool),
        tags=list(tags),
        calls=list(calls),
        failures=[],
    )


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def context(small_dir: Path, server: ScriptedServer) -> Context:
    """The context of a request to the scripted server, which writes tags of its own, about the small data set."""
    return Context(
        dataset=small_dir,
        base_url=server.base_url,
        model=MODEL,
        items=4,
        final_tags=8,
        tags_per_expert=15,
        vocabulary="any",
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the default model's kind, with its tokenizer and random weights of two narrow layers."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "smollm2-135m-instruct")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **size, num_key_value_heads=2, pad_token_id=2, eos_token_id=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)
