"""Small weights with a card: written whole or not at all, and read only if they are the ones of their card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

CARD = "card.json"


def write_weights(directory: Path, name: str, weights: Mapping[str, Tensor], card: Mapping[str, object]) -> None:
    """Write weights, then their card with the SHA-256 of the file: without it they are none."""
    directory.mkdir(parents=True, exist_ok=True)
    content = save({key: weight.contiguous() for key, weight in weights.items()})
    document = {**card, "sha256": hashlib.sha256(content).hexdigest()}
    for path, data in (
        (directory / name, content),
        (directory / CARD, (json.dumps(document, indent=2) + "\n").encode()),
    ):
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)


def read_weights(directory: Path, name: str, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a card.

    Raises:
        OSError: they are missing.
        ValueError: they are not those of the card.
    """
    content = (directory / name).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != card["sha256"]:
        raise ValueError(f"{directory / name} has SHA-256 {found}, its card says {card['sha256']}")
    return load(content)
