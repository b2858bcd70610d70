"""Train the adaptor of hybrid prompts (section 2 of the report): embedding model and LLM are frozen, it alone learns.

    recgpt train adaptor --alignment runs/train/alignment.jsonl --out runs/train/adaptor

    L = - sum_t log p(y*_t | P_hybrid, y*_<t)

over self-perception pairs and production alignment, in micro-batches of one task each, and a small penalty on vectors
longer than the model's own (`norm_penalty`), which the report does not have. It starts from a projection of a title's
embedding to the mean of the title's own input embeddings, which takes seconds and saves the first hundreds of steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Muon, Optimizer

from prompts.template import load_prompt, spell_out
from tools.adaptor import Adaptor, AdaptorShape, save_adaptor
from tools.dataset import open_dataset
from tools.embedding import Embedder, open_embedder
from tools.errors import ModelFilesError
from tools.hybrid import IGNORED, Example, HybridReader, Reading
from tools.machine import model_type
from tools.models import model_path, weights_name
from training.alignment import Alignment, read_alignments
from training.perception import (
    Pair,
    Perception,
    answered_examples,
    held_out,
    known_facts,
    load_perception,
    perception_pairs,
)
from training.runs import claim, run_trainer, trainer_arguments


@dataclass(frozen=True)
class AdaptorRecipe:
    """Hyper-parameters; the report gives none."""

    seed: int = 7
    hidden: int = 1536
    """Width of the inner layer."""
    tokens: int = 1
    """Input embeddings an entity."""
    pairs: int = 50_000
    """Self-perception pairs."""
    batch_tokens: int = 640
    """Tokens of a micro-batch, padding included, but for what all begin with."""
    learning_rate: float = 3e-3
    """Of the matrices, by Muon. A few thousand steps leave more of an entity in its vector than AdamW's do."""
    bias_rate: float = 2e-3
    """Of the biases, by AdamW."""
    norm_penalty: float = 0.1
    """Weight of what vectors are longer than the model's own input embeddings, see `HybridReader`."""
    warmup_steps: int = 50
    """Steps in which the rates rise; then they fall to 0, by a half cosine."""
    start_steps: int = 600
    """Of the projection that it starts from."""
    evaluate_every: int = 500
    """Steps between evaluations, each of which is a checkpoint too."""
    validation_pairs: int = 240
    """Self-perception pairs about validation entities."""
    validation_alignments: int = 8
    """Lines whose households are kept for validation."""


def train_adaptor(
    dataset_dir: Path,
    embedding_model: str,
    model: str,
    alignment: Path | None,
    titles: Path | None,
    mixture: Path,
    out: Path,
    recipe: AdaptorRecipe,
    report: Callable[[str], None],
    command: str = "",
) -> dict[str, Any]:
    """Train, and write the weights of the best evaluation with their card to `out/adaptor`.

    Args:
        dataset_dir: the data set whose items the self-perception pairs are about.
        embedding_model: setting of the text embedder.
        model: the LLM: a name of ours, a directory or a hub name.
        alignment: what `recgpt train alignment` wrote; None for self-perception alone.
        titles: JSON lines `{"zh": ..., "en": ...}`, a further task; None for none.
        mixture: tasks of self-perception and their shares.
        out: checkpoints, TensorBoard logs, weights; a run that stopped there goes on if it is the same one.
        recipe: hyper-parameters.
        report: called with a sentence.
        command: what the card says how this was made.

    Returns:
        The card.
    """
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    dataset, embedder = open_dataset(dataset_dir), open_embedder(embedding_model)
    perception, facts = load_perception(mixture), known_facts(dataset, titles)
    path = model_path(model, report)
    reading = Reading(path, recipe.tokens)
    lines = read_alignments(alignment, weights_name(model)) if alignment else []
    validated = {line.user_id for line in lines[: recipe.validation_alignments]}
    aligned = {
        "train": [line for line in lines if line.user_id not in validated] * perception.alignment,
        "validation": [line for line in lines if line.user_id in validated],
    }
    pairs = {
        "train": perception_pairs(facts, perception, "train", recipe.pairs, recipe.seed),
        "validation": perception_pairs(facts, perception, "validation", recipe.validation_pairs, recipe.seed),
    }
    unseen = {
        "train": held_out(facts, "validation", "test", "test_leaf"),
        "validation": held_out(facts, "test", "test_leaf"),
    }
    shown = answered_examples(facts, perception)
    groups = {
        split: [
            *_of_pairs(pairs[split], perception, shown, reading),
            list(_of_alignments(aligned[split], reading, unseen[split])),
        ]
        for split in pairs
    }
    examples = {split: [example for group in own for example in group] for split, own in groups.items()}
    digest = _digest(examples["train"])
    report(f"{len(pairs['train']):,} pairs, {len(lines):,} alignments; embedding their entities")
    vectors = _Vectors(embedder, [name for own in examples.values() for example in own for name in example.entities])
    set_seed(recipe.seed)
    llm = AutoModelForCausalLM.from_pretrained(path, dtype=model_type()).requires_grad_(requires_grad=False).eval()
    shape = AdaptorShape(vectors.size, recipe.hidden, llm.config.hidden_size, recipe.tokens)
    adaptor = Adaptor(shape)
    trained_titles = sorted({pair.entity for pair in pairs["train"]})
    start_from_titles(adaptor, llm.get_input_embeddings().weight, trained_titles, vectors, reading, recipe, report)
    llm.to("cuda" if torch.cuda.is_available() else "cpu")  # Trainer moves the adaptor alone
    reader = HybridReader(adaptor, llm, reading.placeholder, recipe.norm_penalty)
    batches = {split: batches_of_tokens(own, recipe.batch_tokens, recipe.seed) for split, own in groups.items()}
    config = TrainingArguments(
        **trainer_arguments(out, recipe),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        num_train_epochs=1,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
    )
    run: dict[str, object] = {
        "model": weights_name(model),
        "embedder": embedder.name,
        "data_sha256": digest,
        "recipe": asdict(recipe),
    }
    claim(out, run)
    trainer = Trainer(
        model=reader,
        args=config,
        train_dataset=batches["train"],
        eval_dataset=batches["validation"],
        data_collator=lambda micro: collate(micro[0], vectors, reading.placeholder),
        optimizers=(MuonWithAdamW(adaptor, recipe), None),
    )
    report(f"{len(batches['train']):,} micro-batches")
    told = run_trainer(trainer, out, report)
    card = {
        "command": command,
        **run,
        "dataset": dataset.info.name,
        "pairs": len(pairs["train"]),
        "alignments": len(lines) - len(aligned["validation"]),
        "aligned_households": sorted({line.user_id for line in lines}),
        "tokens": sum(len(example.ids) for example in examples["train"]),
        **told,
    }
    save_adaptor(adaptor, out / "adaptor", card)
    return card


class MuonWithAdamW(Optimizer):
    """Muon for the matrices of an adaptor, AdamW for its biases, which Muon does not take."""

    def __init__(self, adaptor: Adaptor, recipe: AdaptorRecipe) -> None:
        """Both at the rates of a recipe."""
        matrices, biases = ([one for one in adaptor.parameters() if one.ndim == ndim] for ndim in (2, 1))
        self._parts = (
            Muon(matrices, recipe.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            AdamW(biases, recipe.bias_rate, weight_decay=0.0),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As saved."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One step of both."""
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]

    def _share(self) -> None:
        """Groups and state are this optimiser's, so that schedules and checkpoints reach them."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state


def start_from_titles(
    adaptor: Adaptor,
    table: Tensor,
    titles: Sequence[str],
    vectors: _Vectors,
    reading: Reading,
    recipe: AdaptorRecipe,
    report: Callable[[str], None],
) -> None:
    """Fit the adaptor to give the mean of a title's input embeddings; each of several tokens gets a part of the title.

    Args:
        adaptor: is changed.
        table: the LLM's input embeddings, (vocabulary, width).
        titles: to fit on.
        vectors: their text embeddings.
        reading: of titles.
        recipe: see there.
        report: called with a sentence.
    """
    parts = [np.array_split(reading.title(title), recipe.tokens) for title in titles]
    wanted = torch.stack(
        [torch.stack([table[torch.from_numpy(part)].float().mean(dim=0) if len(part) else table.float().mean(dim=0)
                      for part in own]) for own in parts]
    )  # fmt: skip
    texts = vectors(titles)
    scale = wanted.std()
    optimiser = torch.optim.AdamW(adaptor.parameters(), 1e-3)
    with torch.no_grad():
        adaptor.outer.bias.copy_(wanted.mean(dim=0).flatten())
        adaptor.outer.weight.mul_(scale)
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(1, recipe.start_steps + 1):
        rows = torch.randint(len(texts), (256,), generator=generator)
        loss = mse_loss(adaptor(texts[rows]) / scale, wanted[rows] / scale)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 100 == 0:
            report(f"start: step {step} of {recipe.start_steps}, {loss.item():.3f} of the variance is left")


def batches_of_tokens(groups: Sequence[Sequence[Example]], most: int, seed: int) -> list[list[Example]]:
    """Micro-batches of one group each, of examples of like length, in random order.

    A batch has `most` tokens with padding, less what all of its group begin with, which is read once.
    """
    rng = np.random.default_rng(seed)
    batches: list[list[Example]] = []
    for group in groups:
        begin = _common_beginning([example.ids for example in group])
        batch: list[Example] = []
        shuffled = [group[row] for row in rng.permutation(len(group))]
        for example in sorted(shuffled, key=lambda one: len(one.ids)):
            if batch and (len(batch) + 1) * (len(example.ids) - begin) <= most:
                batch.append(example)
            else:
                batch = [example]
                batches.append(batch)
    return [batches[row] for row in rng.permutation(len(batches))]


def _common_beginning(texts: Sequence[Tensor]) -> int:
    """How many ids all texts begin with alike."""
    shortest = min(map(len, texts), default=0)
    rows = torch.stack([ids[:shortest] for ids in texts]) if texts else torch.empty(0, 0)
    return int((rows == rows[:1]).all(dim=0).long().cumprod(dim=0).sum())


def collate(batch: Sequence[Example], vectors: _Vectors, placeholder: int) -> dict[str, Tensor]:
    """A micro-batch as the fields of `HybridReader.forward`, padded on the right."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, example in enumerate(batch):
        count = len(example.ids)
        ids[row, :count], mask[row, :count] = example.ids, 1
        labels[row, example.answer : count] = example.ids[example.answer :]
    names = [name for example in batch for name in example.entities]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "embeddings": vectors(names)}


class _Vectors:
    """Text embeddings of entities, each computed once."""

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        distinct = sorted(set(texts))
        self._row = {text: row for row, text in enumerate(distinct)}
        self._table = torch.from_numpy(embedder.embed(distinct))
        if not bool(self._table.isfinite().all()):
            raise ModelFilesError(f"{embedder.name} gives embeddings with NaN or infinite numbers: it is damaged")
        self.size = int(self._table.shape[1])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), size)."""
        return self._table[[self._row[text] for text in texts]]


def _of_pairs(
    pairs: Sequence[Pair], perception: Perception, shown: Mapping[str, Sequence[Pair]], reading: Reading
) -> list[list[Example]]:
    """By task: all questions of one begin alike."""
    groups: dict[str, list[Example]] = {}
    for pair in pairs:
        messages = perception.ask(pair, shown[pair.task], hybrid=True)
        example = reading.example(messages, json.dumps(pair.answer, ensure_ascii=False))
        groups.setdefault(pair.task, []).append(example)
    return list(groups.values())


def _of_alignments(lines: Sequence[Alignment], reading: Reading, unseen: Container[str]) -> Iterator[Example]:
    """What is held out stays text: no household's history may teach it."""
    for line in lines:
        messages = load_prompt(line.agent, line.version).render(line.values, hybrid=True)
        example = reading.example(spell_out(messages, unseen), line.answer)
        if example.entities:
            yield example


def _digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what is trained on."""
    content = [[example.ids.tolist(), example.answer, example.entities] for example in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
