"""The client of a served reward model: one request a candidate, and clear errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import SecretStr

from tools.errors import ServerError, ServerUnreachableError
from tools.llm import Endpoint
from tools.scoring import score


def endpoint(url: str) -> Endpoint:
    return Endpoint(url, "scorer", SecretStr("key"), 5.0)


@pytest.fixture
def url() -> Iterator[str]:
    """A server that scores a text by its length, and knows one model."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            length = len(body["messages"][-1]["content"])
            known = self.path == "/classify" and body["messages"][0]["role"] == "system" and length < 100
            reply = {"data": [{"probs": [length / 100]}]} if known else {"error": "too long"}
            self.send_response(200 if known else 400)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


async def test_scores_come_in_the_order_of_the_candidates(url: str) -> None:
    candidates = [[SystemMessage("score"), HumanMessage("x" * length)] for length in (9, 3, 5)]
    assert await score(endpoint(url), candidates) == [0.09, 0.03, 0.05]
    assert await score(endpoint(url), []) == []


async def test_what_is_no_score_is_an_error(url: str) -> None:
    with pytest.raises(ServerError, match=r"answered 400 .*too long.* serve a reward model there"):
        await score(endpoint(url), [[SystemMessage("score"), HumanMessage("x" * 500)]])
    with pytest.raises(ServerUnreachableError, match="does not answer"):
        await score(endpoint("http://127.0.0.1:9/v1"), [[HumanMessage("x")]])
