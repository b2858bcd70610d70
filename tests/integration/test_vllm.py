"""The main job against the real vLLM server with the default model, on the real data set.

What the untuned model says is not tested; that every answer is held to its schema, counted, and either used or
listed is.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import psutil
import pytest
import torch
from pydantic import SecretStr
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.context import Context
from agents.judging import reward_messages
from agents.schemas import Recommendation, Request
from eval.hybrid import prompt_sizes, whole_prompts
from eval.splits import evaluation_cases
from graphs.intent import graph as intent
from tests.unit.test_reward_training import texts as candidates
from tools.dataset import open_dataset
from tools.errors import ServerError
from tools.hybrid import Reading
from tools.llm import Endpoint
from tools.models import ADAPTER_CONFIG, ADAPTERS, BASE_MODEL, DEFAULT_MODEL, JUDGE_MODEL
from tools.scoring import score
from tools.serving import CPU, MAX_RANK, load_adapter, running_server, served_models
from training.reward_model import (
    RewardRecipe,
    open_reward,
    pack_context,
    score_contexts,
    train_reward,
)

pytestmark = pytest.mark.timeout(600)  # two busy cores take minutes to start a server and to read a household

ROOT = Path(__file__).parents[2]
BASE_URL = "http://127.0.0.1:8417/v1"
GUARD = Path(__file__).parent / "guard"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real server, under a guard that records and refuses every connection to another machine."""
    record = tmp_path_factory.mktemp("guard") / "refused.txt"
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    patch.setenv("PYTHONPATH", str(GUARD))
    patch.setenv("GUARD_RECORD", str(record))
    with running_server(CPU, DEFAULT_MODEL, BASE_URL, lambda message: None):
        yield record
    patch.undo()
    assert served_models(BASE_URL) is None  # what was started is stopped


def recommend(*arguments: str, record: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recgpt", "recommend", "--base-url", BASE_URL, *arguments]
    environment = os.environ | {"PYTHONPATH": str(GUARD), "GUARD_RECORD": str(record)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=900)


def test_two_households(vllm: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "r.jsonl", tmp_path / "r.html"
    settings = ("items=3", "tags_per_expert=5", "final_tags=4", "planner_tokens=1200")
    small = [part for setting in settings for part in ("--set", setting)]
    done = recommend(
        *("--sample", "2", "--seed", "7", "--as-of", "2017-11-17", *small),
        *("--out", str(out), "--report", str(page)),
        record=vllm,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    items = {item for item in _item_ids()}
    for line in lines:
        jsonschema.validate(line, Recommendation.model_json_schema())
        assert len(line["items"]) >= 3
        assert {item["item_id"] for item in line["items"]} <= items
        result = Recommendation.model_validate(line)
        agents = result.usage.by_agent.values()
        assert result.usage.llm_calls == sum(agent.llm_calls for agent in agents) > 0
        assert result.usage.prompt_tokens > 500
        rejected = result.usage.llm_calls - sum(agent.first_tries for agent in agents)
        assert len(result.rejected) >= rejected
        history = {entry.id for entry in result.household.history}
        assert all(entry.id in history for persona in result.personas for entry in persona.evidence)
    assert not vllm.exists(), f"something tried to reach {vllm.read_text()}"


def test_seeded_requests_with_long_prompts_do_not_kill_the_engine(vllm: Path) -> None:
    """vLLM 0.32 on a CPU dies when it chunks the prompt of a seeded request; the profile keeps prompts whole."""
    with httpx.Client(timeout=300) as client:
        body = {
            "model": DEFAULT_MODEL,
            "messages": [{"role": "user", "content": "milk bread eggs " * 800}],
            "max_tokens": 2,
            "seed": 1,
            "temperature": 0.7,
            "n": 3,
        }
        assert client.post(f"{BASE_URL}/chat/completions", json=body).status_code == 200
        assert client.post(f"{BASE_URL}/chat/completions", json=body).status_code == 200


def test_input_embeddings_between_text_are_read_in_their_place(vllm: Path) -> None:
    """The model's own embeddings of a word say the same as the word, wherever it stands, with nothing around it."""
    path = ROOT / "models" / DEFAULT_MODEL
    tokenizer = AutoTokenizer.from_pretrained(path)
    table = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).get_input_embeddings().weight
    buffer = io.BytesIO()
    torch.save(table[tokenizer(" milk, bread", add_special_tokens=False)["input_ids"]].detach().clone(), buffer)
    parts = [
        {"type": "text", "text": "Say what goes with"},
        {"type": "prompt_embeds", "data": base64.b64encode(buffer.getvalue()).decode()},
        {"type": "text", "text": " and eggs."},
    ]
    replies = []
    with httpx.Client(timeout=300) as client:
        for content in (parts, "Say what goes with milk, bread and eggs."):
            body = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": content}]}
            size = client.post(f"{BASE_URL.removesuffix('/v1')}/tokenize", json=body).raise_for_status().json()["count"]
            sampling = {"max_tokens": 16, "temperature": 0}
            reply = client.post(f"{BASE_URL}/chat/completions", json=body | sampling).raise_for_status().json()
            replies.append((size, reply["usage"]["prompt_tokens"], reply["choices"][0]["message"]["content"]))
    assert replies[0] == replies[1]


async def test_a_history_of_three_windows_is_read_whole_as_hybrid(vllm: Path) -> None:
    """With the shipped adaptor; household 1899 has 22,641 tokens of text, the window takes 8,192."""
    settings: dict[str, Any] = {"base_url": BASE_URL, "representation": "hybrid", "tags_per_expert": 3, "final_tags": 3}
    context = Context(dataset=ROOT / "data" / "completejourney", **settings)
    dataset = open_dataset(context.dataset)
    (case,) = (case for case in evaluation_cases(dataset, None) if case.user_id == "1899")
    reading = Reading(str(ROOT / "models" / DEFAULT_MODEL), tokens=1)
    sizes = prompt_sizes(whole_prompts(dataset, context, case), reading)
    assert sizes.text > 20_000
    state = await intent.ainvoke(Request(user_id=case.user_id, as_of=case.as_of), context=context)
    planner = [call for call in state["calls"] if call.agent == "planner"]
    assert planner[0].prompt_tokens == sizes.hybrid < 8192
    assert planner[0].completion_tokens > 0  # what a model that never learnt from such prompts says isn't asked here


def test_adapters_by_name_and_one_more_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the profile for GPUs does, on a CPU: the tuned default model is its base with the adapter beside it."""
    monkeypatch.chdir(ROOT)
    base_url = "http://127.0.0.1:8421/v1"
    task = {
        "messages": [{"role": "user", "content": "Write 5 tags as JSON for the persona Home baking."}],
        "max_tokens": 24,
        "temperature": 0,
    }

    def answer(model: str) -> str:
        reply = httpx.post(f"{base_url}/chat/completions", json={**task, "model": model}, timeout=120)
        return str(reply.raise_for_status().json()["choices"][0]["message"]["content"])

    with running_server(dataclasses.replace(CPU, adapters=True), DEFAULT_MODEL, base_url, lambda message: None):
        assert served_models(base_url) == [BASE_MODEL, DEFAULT_MODEL, JUDGE_MODEL]
        tuned = answer(DEFAULT_MODEL)
        assert tuned != answer(BASE_MODEL)
        load_adapter(base_url, "my-expert", ADAPTERS[DEFAULT_MODEL])
        assert answer("my-expert") == tuned
        with pytest.raises(ServerError, match=r"did not take .* as 'broken'"):
            load_adapter(base_url, "broken", tmp_path)
        config = json.loads((ADAPTERS[DEFAULT_MODEL] / ADAPTER_CONFIG).read_text())
        wide = shutil.copytree(ADAPTERS[DEFAULT_MODEL], tmp_path / "wide")
        (wide / ADAPTER_CONFIG).write_text(json.dumps(config | {"r": 2 * MAX_RANK}))
        with pytest.raises(ServerError, match=rf"rank.* {2 * MAX_RANK} .*allow ranks up to {MAX_RANK}"):
            load_adapter(base_url, "wide", wide)
        assert answer("my-expert") == tuned  # the server goes on


async def test_a_reward_model_is_served_with_the_scores_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step on made-up candidates: whatever it has learnt, the scores must not hang on who computes them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tools.models.MODELS_DIRECTORY", tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / BASE_MODEL).symlink_to(ROOT / "models" / BASE_MODEL)
    texts = [text for text in candidates() if text.task.user_id in ("u0", "u1", "u12", "u19")]
    recipe = RewardRecipe(accumulate=2, warmup_steps=1)
    train_reward(texts, ["made up"], BASE_MODEL, tmp_path / "reward", recipe, print, "of a test")
    adapter = tmp_path / "reward" / "adapter"
    model, tokenizer = open_reward(adapter, print)
    base_url = "http://127.0.0.1:8423/v1"
    with running_server(CPU, str(adapter), base_url, print):
        endpoint = Endpoint(base_url, str(adapter), SecretStr("EMPTY"), 120.0)
        for context in (texts[:3], texts[-3:]):
            (expected,) = score_contexts(model, [pack_context(context, tokenizer)], print)
            assert await score(endpoint, reward_messages([text.task for text in context])) == pytest.approx(
                expected, abs=1e-3
            )
            assert max(expected) - min(expected) > 0.01  # else the order of the candidates would not matter


def test_the_guard_refuses(tmp_path: Path) -> None:
    """A guard that can't refuse guards nothing."""
    record = tmp_path / "refused.txt"
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    environment = os.environ | {"PYTHONPATH": str(GUARD), "GUARD_RECORD": str(record)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "192.0.2.1" in record.read_text()


def test_a_run_that_is_ended_stops_the_server_that_it_started(tmp_path: Path) -> None:
    code = f"""
from recgpt.cli import end_cleanly_on_sigterm
from tools.serving import CPU, running_server
end_cleanly_on_sigterm()
with running_server(CPU, {DEFAULT_MODEL!r}, "http://127.0.0.1:8419/v1", print):
    pass
"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    servers: list[psutil.Process] = []
    for _ in range(100):
        servers = [child for child in psutil.Process(process.pid).children() if "vllm" in " ".join(child.cmdline())]
        if servers:
            break
        time.sleep(0.2)
    assert servers
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not any(server.is_running() for server in servers)


def _item_ids() -> list[str]:
    import polars as pl

    return pl.read_parquet(ROOT / "data" / "completejourney" / "items.parquet")["item_id"].to_list()
