"""The clients of model and embedding servers: what is no answer is an error that says so, pools end with their loop."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from tests.scripted_server import ScriptedServer
from tools import llm
from tools.embedding import EndpointEmbedder
from tools.errors import ServerError, ServerUnreachableError
from tools.llm import Completion, Endpoint, close_client, complete, measure_prompt

Answers = dict[str, tuple[int, object]]


@pytest.fixture
def answers() -> Answers:
    """By path: status and body of what the server answers."""
    return {}


@pytest.fixture
def url(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers[self.path]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


async def ask(url: str, *, logprobs: bool = False) -> Completion:
    endpoint = Endpoint(url, "m", SecretStr("key"), 5.0)
    return await complete(
        endpoint,
        [HumanMessage("milk?")],
        {"type": "object"},
        temperature=0.0,
        max_tokens=5,
        seed=None,
        run_name="test",
        metadata={},
        logprobs=logprobs,
    )


def test_loops_that_close_their_client_leave_none_behind(server: ScriptedServer) -> None:
    before = len(llm._clients)

    async def measured() -> None:
        try:
            await measure_prompt(Endpoint(server.base_url, "m", SecretStr("key"), 5.0), [HumanMessage("milk")], 100)
            assert len(llm._clients) == before + 1
        finally:
            await close_client()
            await close_client()  # where there is none, nothing happens

    for _ in range(5):
        asyncio.run(measured())
    assert len(llm._clients) == before


async def test_a_prompt_is_measured_with_the_pool_and_the_endpoints_own_time(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx, "AsyncClient", None)  # a client of its own would read the CA bundle in the loop
    pool = llm.pooled_client()
    timeouts = []

    async def post(*args: object, _post=pool.post, **kwargs: object) -> object:
        timeouts.append(kwargs["timeout"])
        return await _post(*args, **kwargs)

    monkeypatch.setattr(pool, "post", post)
    size = await measure_prompt(Endpoint(server.base_url, "m", SecretStr("key"), 5.0), [HumanMessage("milk" * 3)], 100)
    assert (size.tokens, size.window, timeouts) == (3, 8192, [5.0])
    await close_client()


@pytest.mark.parametrize(
    "body",
    [
        {"choices": None},
        {"id": "1", "object": "chat.completion"},
        {"choices": []},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "finish_reason": "stop", "message": None}]},
        {},
        [],
    ],
)
async def test_a_200_that_holds_no_completion_is_a_server_error(answers: Answers, url: str, body: object) -> None:
    answers["/v1/chat/completions"] = (200, body)
    with pytest.raises(ServerError, match=r"model server at http://127\.0\.0\.1.* request for 'm'") as caught:
        await ask(url)
    assert not isinstance(caught.value, ServerUnreachableError)
    await close_client()


@pytest.mark.parametrize(
    "entry", [{"token": "m", "logprob": 0.0}, {"token": "m", "logprob": 0.0, "top_logprobs": None}]
)
async def test_log_probabilities_of_another_form_are_a_server_error(answers: Answers, url: str, entry: object) -> None:
    message = {"role": "assistant", "content": "{}"}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": [entry]}}
    answers["/v1/chat/completions"] = (200, {"choices": [choice]})
    with pytest.raises(ServerError, match="expected token, logprob and the 8 top_logprobs of each place"):
        await ask(url, logprobs=True)
    await close_client()


MODELS = {"data": [{"id": "e"}]}


def test_an_embedding_endpoint_gives_unit_vectors(answers: Answers, url: str) -> None:
    answers |= {"/v1/models": (200, MODELS), "/v1/embeddings": (200, {"data": [{"embedding": [3.0, 4.0]}]})}
    assert np.allclose(EndpointEmbedder(url).embed(["milk"]), [[0.6, 0.8]])


@pytest.mark.parametrize(
    ("models", "embeddings", "message"),
    [
        ((200, {"data": []}), (200, {}), r"/models answered .*expected 1 rows of data with 'id'; set embedding_model"),
        ((200, {"data": None}), (200, {}), r"/models answered .*expected 1 rows"),
        ((200, []), (200, {}), r"/models answered .*expected 1 rows"),
        ((404, {"detail": "Not Found"}), (200, {}), r"/models refused: 404 .*Not Found.*; set embedding_model"),
        ((200, MODELS), (200, {"data": []}), r"/embeddings answered .*expected 1 rows of data with 'embedding'"),
        ((200, MODELS), (200, {"data": [{"index": 0}]}), r"/embeddings answered .*expected 1 rows"),
        ((200, MODELS), (400, {"error": "too long"}), r"/embeddings refused: 400 .*too long.*; set embedding_model"),
    ],
)
def test_an_endpoint_without_embeddings_is_refused_for_good(
    answers: Answers, url: str, models: tuple[int, object], embeddings: tuple[int, object], message: str
) -> None:
    answers |= {"/v1/models": models, "/v1/embeddings": embeddings}
    with pytest.raises(ServerError, match=message) as caught:
        EndpointEmbedder(url)
    assert not isinstance(caught.value, ServerUnreachableError)


def test_an_embedding_endpoint_that_fails_may_be_asked_again(answers: Answers, url: str) -> None:
    for status in (503, 429):
        answers["/v1/models"] = (status, {"error": "busy"})
        with pytest.raises(ServerUnreachableError, match=rf"/models failed: {status} .*busy"):
            EndpointEmbedder(url)
    with pytest.raises(ServerUnreachableError, match="does not answer"):
        EndpointEmbedder("http://127.0.0.1:9/v1")
