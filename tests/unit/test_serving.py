"""How a server is started for a machine, and how it is told of a new adapter."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from agents.context import Context
from recgpt.cli import app
from tools import serving
from tools.errors import ServerError
from tools.models import ADAPTERS, BASE_MODEL, DEFAULT_MODEL, JUDGE_MODEL, REWARD_MODEL, adapter_digest
from tools.serving import CPU, FP8, load_adapter, serve_command

URL = "http://127.0.0.1:8400/v1"


@pytest.fixture(autouse=True)
def made_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line is looked at, not run."""
    monkeypatch.setattr(serving, "model_path", lambda model, report: f"made/{model}")
    monkeypatch.setattr(serving, "template_of_parts", lambda model: f"template of {model}")
    monkeypatch.setattr(serving, "LOG_DIRECTORY", tmp_path)


def command(profile: serving.ServingProfile, model: str, adapters: dict[str, Path] | None = None) -> str:
    return " ".join(serve_command(profile, model, URL, lambda message: None, adapters))


def test_on_a_cpu_the_tuned_model_is_one_merged_model() -> None:
    line = command(CPU, DEFAULT_MODEL)
    assert f"--model made/{DEFAULT_MODEL} --served-model-name {DEFAULT_MODEL}" in line
    assert "lora" not in line


def test_on_a_gpu_it_is_an_adapter_beside_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = command(FP8, DEFAULT_MODEL)
    assert f"--model made/{BASE_MODEL} --served-model-name {BASE_MODEL}" in line
    assert f"--lora-modules {DEFAULT_MODEL}={ADAPTERS[DEFAULT_MODEL]}" in line


def test_a_larger_model_needs_no_adapter_and_may_have_some(tmp_path: Path) -> None:
    assert "lora" not in command(CPU, "some/larger-model")
    assert command(CPU, "some/larger-model", {"mine": tmp_path}).endswith(f"--lora-modules mine={tmp_path}")


def test_a_reward_model_is_served_by_the_pooling_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    monkeypatch.setattr(serving, "model_path", lambda model, report: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for profile in (CPU, FP8):
        line = command(profile, REWARD_MODEL)
        assert "--runner=pooling --dtype=float32" in line
        assert "fp8" not in line and "lora" not in line


def test_an_adapter_trained_here_needs_what_its_base_needs(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    card = {"sha256": "", "base": JUDGE_MODEL, "base_sha256": ""}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert "--no-enable-chunked-prefill" in command(CPU, str(tmp_path))
    (tmp_path / "card.json").write_text(json.dumps(card | {"base": "some/larger-model"}))
    assert "--no-enable-chunked-prefill" not in command(CPU, str(tmp_path))


def test_a_model_with_several_chat_templates_is_served_without_hybrid_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--enable-prompt-embeds --chat-template" in command(CPU, DEFAULT_MODEL)
    monkeypatch.setattr(serving, "template_of_parts", lambda model: None)
    told: list[str] = []
    line = " ".join(serve_command(CPU, "some/base-model", URL, told.append))
    assert "prompt-embeds" not in line and "chat-template" not in line
    assert "no hybrid prompts" in told[-1]


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--adapter", f"mine={tmp_path}"])
    assert result.exit_code == 1
    assert "expected NAME=DIRECTORY with an adapter_config.json" in " ".join(result.stderr.split())


def test_the_shipped_adapter_is_the_one_of_its_card() -> None:
    card = json.loads((ADAPTERS[DEFAULT_MODEL] / "card.json").read_text())
    assert adapter_digest(ADAPTERS[DEFAULT_MODEL]) == card["sha256"]
    assert {"base", "base_sha256", "data_sha256", "recipe", "hardware", "licence", "command"} <= card.keys()
    assert sum(path.stat().st_size for path in ADAPTERS[DEFAULT_MODEL].iterdir()) < 40e6


def test_a_new_adapter_is_loaded_without_a_restart(tmp_path: Path) -> None:
    bodies: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if bodies[-1]["lora_name"] == "mine" else 400)
            self.end_headers()
            self.wfile.write(b"rank 128 is greater than max_lora_rank 64")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        load_adapter(url, "mine", tmp_path)
        assert bodies == [{"lora_name": "mine", "lora_path": str(tmp_path), "load_inplace": True}]
        with pytest.raises(ServerError, match="allow ranks up to 64"):
            load_adapter(url, "too-large", tmp_path)
        server.shutdown()
    with pytest.raises(ServerError, match="start one with `recgpt serve`"):
        load_adapter(url, "mine", tmp_path)


def test_the_context_chooses_the_model_of_an_agent() -> None:
    context = Context(model="base", expert_model="tuned-expert")
    assert context.endpoint("expert").model == "tuned-expert"
    assert context.endpoint("planner").model == "base"
    assert context.models() == {"base", "tuned-expert"}
