"""LangSmith spans, received by a small sink on loopback; and that nothing is sent when tracing is off."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import zstandard
from langchain_core.tracers.langchain import wait_for_all_tracers
from langsmith import utils

from agents.context import Context
from agents.schemas import Request
from graphs.recommend import graph
from tests.conftest import AS_OF
from tests.scripted_server import ScriptedServer, tokens_of


class Sink:
    """Receives the multipart runs of a LangSmith client and joins the parts of each run."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                self._ok({})

            def do_POST(self) -> None:
                body = self._body()
                if self.headers.get("Content-Encoding") == "zstd":
                    body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
                sink.receive(self.headers["Content-Type"], body)
                self._ok({})

            do_PATCH = do_POST

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _ok(self, answer: object) -> None:
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def receive(self, content_type: str, body: bytes) -> None:
        message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
        for part in message.get_payload():
            name = part.get_param("name", header="Content-Disposition")
            kind, run_id, *field = str(name).split(".")
            if kind in ("post", "patch"):
                value = json.loads(part.get_payload(decode=True))
                run = self.runs.setdefault(run_id, {})
                run.update({field[0]: value} if field else value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


async def test_each_node_and_each_call_is_a_span(
    context: Context, server: ScriptedServer, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", sink.url)
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    utils.get_env_var.cache_clear()
    try:
        await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=context)
        wait_for_all_tracers()
        for _ in range(50):
            calls = [run for run in sink.runs.values() if run.get("run_type") == "llm" and run.get("outputs")]
            if len(calls) == len(server.requests):
                break
            await asyncio.sleep(0.1)
    finally:
        monkeypatch.undo()
        utils.get_env_var.cache_clear()
    names = {run.get("name") for run in sink.runs.values()}
    nodes = {"read_context", "fit_history", "plan_intents", "run_expert", "arbitrate_tags", "ground_tags"}
    assert nodes | {"retrieve_items", "write_style", "write_explanation", "assemble_recommendation"} <= names
    assert len(calls) == len(server.requests)
    for call in calls:
        metadata = call["extra"]["metadata"]
        assert metadata["agent"] in {"planner", "expert", "arbiter", "style", "explainer"}
        assert (metadata["prompt_name"], metadata["prompt_version"]) == (metadata["agent"], "v1")
        assert metadata["agent"] in call["tags"]
    told = [call["outputs"]["generations"][0][0]["message"]["kwargs"]["usage_metadata"] for call in calls]
    assert sorted(usage["input_tokens"] for usage in told) == sorted(map(tokens_of, server.requests))
    assert all(usage["total_tokens"] == usage["input_tokens"] + 10 for usage in told)


async def test_without_its_variables_nothing_is_sent(
    context: Context, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGSMITH_ENDPOINT", sink.url)
    await graph.ainvoke(Request(user_id="h1", as_of=AS_OF), context=context)
    wait_for_all_tracers()
    assert sink.runs == {}
