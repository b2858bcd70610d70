"""An OpenAI-compatible server on loopback that answers by script: for unit tests of logic, never for a claim.

`good_answer` answers each agent sensibly from its prompt alone, so that a run through the whole graph shows what
the system does with a model that answers well. Tests replace `server.answer` to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agents.route import ROUTES

MODEL = "scripted"
EMBEDDED = "<e>;"

SHOPPING = {
    "Quick weekday dinners": ["frozen pizza", "dry spaghetti", "pasta sauce", "frozen french fries", "hot dogs"],
    "Breakfast and snacks": ["kids cereal", "orange juice", "potato chips", "yogurt", "frozen waffles"],
    "Holiday baking": ["canned pumpkin", "cake mix", "brown sugar", "whipped topping", "evaporated milk"],
    "Cleaning and paper": ["toilet tissue", "paper towels", "laundry detergent", "dish soap", "trash bags"],
}
ROUTED = dict(zip((route.name for route in ROUTES), SHOPPING.values(), strict=True))


NO_EMBEDS = "You must set `--enable-prompt-embeds` to input `prompt_embeds`"


class Reply:
    """What a script answers: text, why it ended, or an HTTP status; `delay` seconds before it."""

    def __init__(self, text: str = "", finish: str = "stop", status: int = 200, delay: float = 0.0) -> None:
        self.text, self.finish, self.status, self.delay = text, finish, status, delay


class ScriptedServer:
    """The server, its requests so far, and the script that answers them."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Callable[[str, dict[str, Any]], Reply] = lambda agent, body: Reply(good_answer(agent, body))
        self.model = MODEL
        """The name that it serves."""
        self.window = 8192
        self.tokenizer = True
        self.paths: list[str] = []
        """Of all requests, answered or refused."""
        self.embeds_refusal = ""
        """What it says to input embeddings; empty where it takes them."""
        self.separator = ""
        """What its chat template puts between the parts of a message."""
        self.counts = True
        """Whether it tells of its prefix cache."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._send(200, outer.metrics())
                    return
                self._send(200, {"data": [{"id": outer.model, "max_model_len": outer.window}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.paths.append(self.path)
                if outer.embeds_refusal and "prompt_embeds" in str(body["messages"]):
                    self._send(400, {"error": {"message": outer.embeds_refusal}})
                    return
                tokens = tokens_of(body, outer.separator)
                if self.path.endswith("/tokenize"):
                    reply = {"count": tokens, "max_model_len": outer.window}
                    self._send(200 if outer.tokenizer else 404, reply)
                    return
                agent = body["response_format"]["json_schema"]["name"]
                outer.requests.append(body)
                reply = outer.answer(agent, body)
                time.sleep(reply.delay)
                if reply.status != 200:
                    self._send(reply.status, {"error": {"message": reply.text or "scripted"}})
                    return
                message = {"role": "assistant", "content": reply.text}
                self._send(
                    200,
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 0,
                        "model": outer.model,
                        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
                        "usage": {"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10},
                    },
                )

            def _send(self, status: int, body: object) -> None:
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64  # many users come at once

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def metrics(self) -> str:
        """As vLLM tells of its prefix cache: of ten tokens a request it had eight."""
        of = f'_total{{engine="0",model_name="{self.model}"}} '
        counts = {"hits": 8 * len(self.requests), "queries": 10 * len(self.requests)} if self.counts else {}
        return "".join(f"vllm:prefix_cache_{name}{of}{count}.0\n" for name, count in counts.items())

    def prompts(self, agent: str) -> list[str]:
        """Every prompt that an agent sent, system and user text together."""
        return [
            "\n".join(text_of(message) for message in body["messages"])
            for body in self.requests
            if body["response_format"]["json_schema"]["name"] == agent
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def text_of(message: dict[str, Any], separator: str = "") -> str:
    """A message's text; four characters, as for one token, stand for each input embedding."""
    if isinstance(message["content"], str):
        return message["content"]
    return separator.join(part["text"] if part["type"] == "text" else EMBEDDED for part in message["content"])


def tokens_of(body: dict[str, Any], separator: str = "") -> int:
    """Of a request's prompt: four characters each."""
    return sum(len(text_of(message, separator)) for message in body["messages"]) // 4


def good_answer(agent: str, body: dict[str, Any]) -> str:
    """A sensible answer from the prompt alone."""
    prompt = text_of(body["messages"][-1])
    if agent == "planner":
        schema = body["response_format"]["json_schema"]["schema"]
        citations = schema["$defs"]["Persona"]["properties"]["evidence"]["items"]
        return json.dumps(_planner(prompt, citations.get("enum") or [citations["const"]]))
    if agent in ("expert", "route"):
        tag = body["response_format"]["json_schema"]["schema"]["properties"]["tags"]["items"]
        return json.dumps(_expert(prompt, tag.get("enum", [])))
    if agent == "style":
        season = body["response_format"]["json_schema"]["schema"]["properties"]["season"]
        return json.dumps(_style(season.get("enum", ["none"])[0]))
    return json.dumps(globals()[f"_{agent}"](prompt))


def _planner(prompt: str, lines: list[str]) -> object:
    signals = re.findall(r"^(s\d+): ", prompt, re.M)
    most = int(re.search(r"at most (\d+) personas", prompt)[1])  # type: ignore[index]
    personas = []
    for number, name in enumerate(list(SHOPPING)[:most]):
        personas.append(
            {
                "name": name,
                "intent": f"The household needs things for {name.lower()} this week.",
                "evidence": list(dict.fromkeys(lines[-1 - (number + k) % len(lines)] for k in range(3))),
                "signals": signals[:1],
            }
        )
    return {"personas": personas}


def _expert(prompt: str, vocabulary: list[str]) -> object:
    persona = re.search(r"Persona: (.+)", prompt)[1]  # type: ignore[index]
    count = int(re.search(r"Write (\d+) tags", prompt)[1])  # type: ignore[index]
    if vocabulary:
        return {"tags": [vocabulary[number % len(vocabulary)] for number in range(count)]}
    core = (SHOPPING | ROUTED)[persona]
    kinds = ["", "store brand ", "family size "]
    return {"tags": [f"{kind}{tag}" for kind in kinds for tag in core][:count]}


def _arbiter(prompt: str) -> object:
    pool = [line for line in re.findall(r"^- (.+) \[.+\]$", prompt, re.M)]
    count = int(re.search(r"Pick (\d+) tags", prompt)[1])  # type: ignore[index]
    spread = [pool[i] for start in range(5) for i in range(start, len(pool), 5)]
    return {"picks": [{"tag": tag, "reason": "fits the week's plan"} for tag in spread[:count]]}


def _style(season: str) -> object:
    return {"tone": "warm", "audience": "the family", "rhetoric": "a plain fact", "season": season, "words": 20}


def _explainer(prompt: str) -> object:
    item = re.search(r"Item: (.+)", prompt)[1]  # type: ignore[index]
    return {"text": f"You cook at home often, and {item[:80]} fits your week."}


def _evaluator(prompt: str) -> object:
    return {"evidence": "t1", "label": "positive"}


def _reviewer(prompt: str) -> object:
    if "Contradictions:" in prompt:
        return {"send_back": "none"}
    grade = re.search(r"^Grade: (\w+)", prompt, re.M)[1]  # type: ignore[index]
    label = {"Bad": "negative", "Average": "neutral", "Superior": "positive"}[grade]
    dimension = re.search(rf"^- (\w+): {label}", prompt, re.M)[1]  # type: ignore[index]
    return {"decisive": dimension, "rationale": f"It is {label} there."}


def _one_shot(prompt: str) -> object:
    return {"grade": "Average", "rationale": "True, and nothing more."}
