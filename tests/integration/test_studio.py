"""The graphs in LangGraph's local server, asked over HTTP, without an account, a key or a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from langgraph.pregel.remote import RemoteGraph

from agents.schemas import Recommendation
from tests.conftest import AS_OF, write_small_dataset
from tests.scripted_server import MODEL, ScriptedServer
from tools.serving import stop

ROOT = Path(__file__).parents[2]
PORT = 8418
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def model_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, model_server: ScriptedServer) -> Iterator[dict[str, object]]:
    """`langgraph dev` as `make studio` runs it; yields the context for its runs."""
    directory = tmp_path_factory.mktemp("studio")
    log = directory / "log.txt"
    environment = os.environ | {
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "1",
        "PYTHONPATH": str(Path(__file__).parent / "guard"),
        "GUARD_RECORD": str(directory / "refused.txt"),
    }
    command = [
        str(Path(sys.executable).parent / "langgraph"),
        "dev",
        "--no-browser",
        "--no-reload",
        "--port",
        str(PORT),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                if httpx.get(f"{URL}/ok", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()[-3000:]
        yield {
            "dataset": str(write_small_dataset(directory / "small")),
            "base_url": model_server.base_url,
            "model": MODEL,
            "items": 3,
        }
        assert not (directory / "refused.txt").exists(), (directory / "refused.txt").read_text()
    finally:
        stop(process)


def remote(name: str) -> RemoteGraph:
    return RemoteGraph(name, url=URL, api_key="none")


async def test_recommend_and_its_parts_answer(studio: dict[str, object]) -> None:
    request = {"user_id": "h1", "as_of": AS_OF.isoformat()}
    state = await remote("recommend").ainvoke(request, context=studio)
    result = Recommendation.model_validate(state)
    assert len(result.items) == 3 and result.failures == []

    intent = await remote("intent").ainvoke(request, context=studio)
    assert [tag["tag"] for tag in intent["tags"]] == [tag.tag for tag in result.tags]

    item = result.items[0].model_dump(mode="json") | {"explanation": None, "style": None}
    task = {
        **request,
        "profile": None,
        "persona": result.personas[0].model_dump(mode="json"),
        "evidence": [],
        "own": [],
        "item": item,
        "signals": [],
    }
    explanation = await remote("explanation").ainvoke(task, context=studio)
    assert explanation["explained"][0]["explanation"]

    subject = {"user_id": "h1", "kind": "tags", "subject_id": "t", "subject": "white milk", "facts": []}
    judged = await remote("judge").ainvoke(subject, context=studio)
    assert judged["judged"][0]["verdict"]["grade"] == "Superior"


async def test_a_prompt_edited_in_studio_reaches_the_model(
    studio: dict[str, object], model_server: ScriptedServer
) -> None:
    context = studio | {"planner_instructions": "Plan for a camping trip."}
    await remote("intent").ainvoke({"user_id": "h1", "as_of": AS_OF.isoformat()}, context=context)
    assert "Plan for a camping trip." in model_server.prompts("planner")[-1]


async def test_the_server_tells_the_settings_of_a_graph(studio: dict[str, object]) -> None:
    async with httpx.AsyncClient() as client:
        found = (await client.post(f"{URL}/assistants/search", json={"graph_id": "recommend"})).json()
        schemas = (await client.get(f"{URL}/assistants/{found[0]['assistant_id']}/schemas")).json()
    settings = schemas["context_schema"]["properties"]
    assert settings["planner_instructions"]["langgraph_type"] == "prompt"
    assert settings["personas"]["maximum"] == 8
