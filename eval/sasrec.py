"""SASRec (Kang and McAuley 2018): self-attention over what a household bought, in order; full softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.baskets import Baskets, Situation, Training

PATIENCE = 3
"""Epochs without a better validation figure before training ends."""


@dataclass(frozen=True)
class SasrecSettings:
    """Hyper-parameters; only when training stops is chosen on validation baskets."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    length: int = 100
    dropout: float = 0.2
    learning_rate: float = 3e-3
    batch: int = 16
    epochs: int = 60
    seed: int = 7


class Network(nn.Module):
    """Embeddings, causal transformer, scores by the entities' own embeddings; entity 0 is padding."""

    def __init__(self, entities: int, settings: SasrecSettings) -> None:
        """Weights."""
        super().__init__()
        self.items = nn.Embedding(entities + 1, settings.width, padding_idx=0)
        self.places = nn.Embedding(settings.length, settings.width)
        layer = nn.TransformerEncoderLayer(
            settings.width, settings.heads, 2 * settings.width, settings.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, settings.layers, nn.LayerNorm(settings.width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(settings.dropout)
        for table in (self.items, self.places):  # alike: louder places would drown what was bought
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, sequences: Tensor) -> Tensor:
        """(b, t) to hidden states (b, t, width); padding stands at the right."""
        length = sequences.shape[1]
        places = torch.arange(length)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.dropout(self.items(sequences) * self.items.embedding_dim**0.5 + self.places(places))
        encoded: Tensor = self.encoder(hidden, mask=mask, is_causal=True)
        return encoded

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) to (..., entities)."""
        return hidden @ self.items.weight[1:].T


class Sasrec:
    """A trained network as a recommender (`eval.baselines.Recommender`)."""

    def __init__(self, network: Network, settings: SasrecSettings) -> None:
        """Keep it, in evaluation mode."""
        self._network, self._settings = network.eval(), settings

    @torch.inference_mode()
    def score(self, seen: Situation) -> NDArray[np.float64]:
        """(n,): the chance of each entity to be the next one after the last ones bought."""
        sequence = torch.from_numpy(seen.history.flat(seen.as_of)[0][-self._settings.length :] + 1)[None]
        return self._network.logits(self._network(sequence)[0, -1]).double().softmax(dim=0).numpy()


def train_sasrec(
    train: Training,
    entities: int,
    settings: SasrecSettings,
    worth: Callable[[Sasrec], float],
    report: Callable[[str], None],
) -> Sasrec:
    """Train until `worth` (a figure on validation baskets) stops rising; the best epoch's weights.

    Args:
        train: baskets of the training range.
        entities: n.
        settings: of network and training.
        worth: what a network is worth on validation.
        report: called with a sentence an epoch.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = Network(entities, settings)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-4)
    best, best_epoch, kept = -np.inf, 0, network.state_dict()
    for epoch in range(1, settings.epochs + 1):
        network.train()
        losses = []
        windows = [window for household in train.values() for window in _windows(household, settings.length + 1, rng)]
        order = rng.permutation(len(windows))
        for start in range(0, len(order), settings.batch):
            batch = [windows[row] for row in order[start : start + settings.batch]]
            longest = max(map(len, batch))
            padded = torch.from_numpy(np.stack([np.pad(window + 1, (0, longest - len(window))) for window in batch]))
            inputs, targets = padded[:, :-1], padded[:, 1:]
            hidden = network(inputs)[targets > 0]
            loss = nn.functional.cross_entropy(network.logits(hidden), targets[targets > 0] - 1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        value = worth(Sasrec(network, settings))
        report(f"sasrec epoch {epoch}: loss {np.mean(losses):.3f}, validation {value:.4f}, best {max(best, value):.4f}")
        if value > best:
            best, best_epoch = value, epoch
            kept = {name: weights.clone() for name, weights in network.state_dict().items()}
        elif epoch - best_epoch >= PATIENCE:
            break
    network.load_state_dict(kept)
    return Sasrec(network, settings)


def _windows(household: Baskets, length: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Cut the sequence into windows at a random offset; the order within a basket is drawn anew each epoch."""
    shuffled = [rng.permutation(content) for content in household.contents]
    sequence = np.concatenate(shuffled) if shuffled else np.empty(0, dtype=np.int64)
    if len(sequence) < 2:
        return []
    first = int(rng.integers(1, length + 1)) if len(sequence) > length else len(sequence)
    cuts = [0, *range(first, len(sequence), length), len(sequence)]
    return [sequence[start:end] for start, end in pairwise(cuts) if end - start >= 2]
