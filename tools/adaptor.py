"""The adaptor (section 2): the text embedding of an entity as input embeddings of the LLM.

    z = W2 ReLU(W1 h + b1) + b2

Embedding model and LLM are frozen; `recgpt train adaptor` trains W1, b1, W2, b2.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tools.errors import ModelFilesError
from tools.loading import load_once
from tools.weights import CARD, read_weights, write_weights

ADAPTOR = Path(__file__).parent.parent / "training" / "weights" / "adaptor"
"""The trained adaptor of the default model that comes with the project."""
WEIGHTS = "adaptor.safetensors"


@dataclass(frozen=True)
class AdaptorShape:
    """Sizes."""

    text: int
    """Dimensions of the text embeddings, d_emb."""
    hidden: int
    """Dimensions of the inner layer."""
    width: int
    """Dimensions of the LLM's input embeddings, d_LLM."""
    tokens: int = 1
    """Input embeddings an entity."""


class Adaptor(nn.Module):
    """Text embeddings to input embeddings."""

    def __init__(self, shape: AdaptorShape) -> None:
        """New weights."""
        super().__init__()
        self.shape = shape
        self.inner = nn.Linear(shape.text, shape.hidden)
        self.outer = nn.Linear(shape.hidden, shape.tokens * shape.width)

    def forward(self, texts: Tensor) -> Tensor:
        """Input embeddings (n, tokens, width) of text embeddings (n, text)."""
        found: Tensor = self.outer(self.inner(texts).relu())
        return found.view(-1, self.shape.tokens, self.shape.width)


@dataclass(frozen=True, eq=False)
class TrainedAdaptor:
    """An adaptor, and what it was trained for."""

    adaptor: Adaptor
    model: str
    """The LLM, with the digest of its weights where that is known."""
    embedder: str
    sha256: str
    """Of the weights."""
    aligned: frozenset[str] = frozenset()
    """Households whose prompts it was aligned on."""


def save_adaptor(adaptor: Adaptor, directory: Path, card: dict[str, Any]) -> None:
    """Write weights and card; the card must say for which `model` and `embedder`."""
    weights = {name: weight.half() for name, weight in adaptor.state_dict().items()}
    write_weights(directory, WEIGHTS, weights, {"shape": asdict(adaptor.shape), **card})


@load_once(maxsize=4)
def load_adaptor(directory: Path, model: str, embedder: str) -> TrainedAdaptor:
    """The adaptor of a directory. Blocks.

    Args:
        directory: weights and card.
        model: the LLM that is to read its vectors, see `tools.models.weights_name`.
        embedder: name of the embedder whose vectors it is to read.

    Raises:
        ModelFilesError: it is missing or damaged, or was trained for another model or embedder.
    """
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        adaptor = Adaptor(AdaptorShape(**card["shape"]))
        adaptor.load_state_dict(
            {name: weight.float() for name, weight in read_weights(directory, WEIGHTS, card).items()}
        )
        aligned = frozenset(card.get("aligned_households", ()))
        trained = TrainedAdaptor(adaptor.eval(), card["model"], card["embedder"], card["sha256"], aligned)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFilesError(
            f"{directory} holds no adaptor of this version ({error!r}); train one with `recgpt train adaptor`, "
            "or set representation=text"
        ) from error
    for what, wanted, found in (("model", model, trained.model), ("embedding model", embedder, trained.embedder)):
        if wanted != found:
            raise ModelFilesError(
                f"{directory} was trained for the {what} {found}, this is {wanted}: set that one, train anew with "
                "`recgpt train adaptor`, or set representation=text"
            )
    return trained
