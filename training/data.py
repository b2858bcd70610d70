"""Training data for the agents, from what households really bought next (section 5 of the report, SFT).

    recgpt train data --dataset data/completejourney --out runs/train/data --seed 7

Of each agent as many examples (`training.examples`) as the mixture asks for, split by household. They are built from
`training_view` alone, which has nothing from `TRAIN_END` on and none of a household's last `HELD_OUT_BASKETS` baskets.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from agents.context import HYBRID_AGENTS, Context
from agents.expert import leaf_tags
from agents.explainer import FIXED_PROMPT
from eval.judged import split_of
from eval.splits import HELD_OUT_BASKETS, TRAIN_END
from prompts.template import load_prompt
from tools.dataset import Dataset, open_dataset
from tools.embedding import open_embedder
from tools.entities import open_entities
from tools.models import BASE_MODEL, model_path
from tools.occasions import open_occasions
from tools.ranker import UtilityChannel, load_ranker
from tools.shelf import tag_text
from tools.towers import open_towers
from training.examples import Builder, Example, Settings
from training.hybrid import ENTITIES, TAGS, VECTORS
from training.mixture import Mixture, general_examples
from training.perception import answered_examples, known_facts, load_perception, perception_pairs
from training.view import all_events, training_view

VALIDATION_SHARE = 0.05
"""Examples of households that validate, for one of the others."""
RARE = 0.01
"""Share of the examples that is not waited for: most cut points have none of the rarest kinds."""
PATIENCE = 200
"""Cut points without any example that is still wanted, after which no more are read."""
ABSENT_KINDS = frozenset(["weather"])
"""No data set that examples are built from has the weather of its past."""

SCHEMA = pl.Schema(
    {
        "agent": pl.String(),
        "kind": pl.String(),
        "user_id": pl.String(),
        "as_of": pl.Datetime("us"),
        "split": pl.String(),
        "system": pl.String(),
        "user": pl.String(),
        "answer": pl.String(),
        "targets": pl.Int64(),
        "new_targets": pl.Int64(),
        "hybrid": pl.Boolean(),
        "bought": pl.List(pl.String()),
        "new": pl.List(pl.String()),
        "shelf": pl.Int64(),
        "judged": pl.String(),
    }
)
"""Of `examples.parquet`.

`user` is a text, or where `hybrid` is set the JSON of its parts. For the policy's rewards an expert's row has what was
`bought` within the horizon, and of it what was `new`, as tags, and how many lines its `shelf` has; an explainer has in
`judged`, as JSON, what its text is judged by (`JudgeTask`), without the text.
"""
NOTHING_TO_REWARD: tuple[object, ...] = (False, [], [], None, "")
"""The last columns of a row that no policy learns from."""


def write_training_data(
    directory: Path,
    out: Path,
    settings: Settings,
    mixture: Mixture,
    users: int | None,
    report: Callable[[str], None],
    model: str = BASE_MODEL,
) -> dict[str, object]:
    """Write `examples.parquet` and its card `card.json`; the same settings give the same examples.

    Args:
        directory: data set.
        out: where to.
        settings: on the card.
        mixture: shares of what the examples teach.
        users: only so many households, the first of a seeded order; None for all.
        report: called with a sentence on the progress.
        model: whose own answers are the general examples.
    """
    dataset = open_dataset(directory)
    view = training_view(dataset)
    context = Context(dataset=directory)
    embedder = open_embedder(context.embedding_model)
    utility = UtilityChannel(
        load_ranker(context.ranker),
        open_towers(dataset, embedder, context.towers),
        open_occasions(dataset, embedder),
    )
    builder = Builder(view, settings, utility)
    everybody = sorted(all_events(view)["user_id"].unique())
    chosen = [str(user) for user in np.random.default_rng(settings.seed).permutation(everybody)[:users]]
    quota = mixture.quota(settings.experts, ABSENT_KINDS)
    quotas = {
        **{("train", *key): count for key, count in quota.items()},
        **{("validation", *key): max(8, round(count * VALIDATION_SHARE)) for key, count in quota.items() if count},
    }
    rows = _general(quotas, model, settings.seed, report) + _perception(quotas, dataset, settings.seed)
    filled: Counter[tuple[str, str, str]] = Counter()
    fruitless: Counter[str] = Counter()
    wanted = {key: count for key, count in quotas.items() if key[1] not in ("general", "perception")}
    cuts = {user_id: builder.cuts(user_id) for user_id in chosen}
    turns = range(settings.cuts_per_user)
    visits = [(user_id, cuts[user_id][turn]) for turn in turns for user_id in chosen if turn < len(cuts[user_id])]
    for number, (user_id, as_of) in enumerate(visits, 1):
        # On none of these the reward model was trained.
        split = "validation" if split_of(user_id) == "validation" else "train"
        open_places = sum(max(count - filled[key], 0) for key, count in wanted.items() if key[0] == split)
        enough = RARE * sum(count for key, count in wanted.items() if key[0] == split)
        if open_places <= enough or fruitless[split] >= PATIENCE:
            continue
        fruitless[split] += 1
        for example in builder.examples(user_id, as_of):
            key = (split, example.agent, example.kind)
            if filled[key] < wanted.get(key, 0):
                filled[key] += 1
                fruitless[split] = 0
                rows.append(_row(example, user_id, as_of, split))
        if number % 50 == 0:
            done = sum(filled.values())
            report(f"{number:,} cut points read, {done:,} of {sum(wanted.values()):,} examples")
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    out.mkdir(parents=True, exist_ok=True)
    table.write_parquet(out / "examples.parquet", compression="zstd")
    tags = leaf_tags(dataset)
    _write_vectors(out / TAGS, tags, embedder.embed(tags))
    source = context.model_copy(update={"representation": "hybrid"}).endpoint(HYBRID_AGENTS[0]).entities
    assert source is not None
    entities = open_entities(source)
    names = sorted({name for user in table.filter("hybrid")["user"] for name in entities_of(user)})
    _write_vectors(out / ENTITIES, names, entities.vectors(names).float().view(len(names), -1).numpy())
    card = _card(table, view, settings, mixture, (out / "examples.parquet").read_bytes())
    card |= {"adaptor_sha256": entities.version.adaptor, "embedder": embedder.name}
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def entities_of(user: str) -> list[str]:
    """The entities of a hybrid prompt's user message, as it stands in `examples.parquet`."""
    return [name for part in json.loads(user) for name in part.get("entities", ())]


def _general(
    quotas: Mapping[tuple[str, str, str], int], model: str, seed: int, report: Callable[[str], None]
) -> list[tuple[object, ...]]:
    """Rows of neutral prompts with the base model's own answers."""
    count, held = (quotas.get((split, "general", "general"), 0) for split in ("train", "validation"))
    if not count:
        return []
    pairs = general_examples(count + held, model_path(model, report), seed, report)
    splits = ["validation"] * held + ["train"] * count
    return [
        ("general", "general", "", TRAIN_END, split, "", question, answer, 0, 0, *NOTHING_TO_REWARD)
        for split, (question, answer) in zip(splits, pairs, strict=False)  # empty answers are left out
    ]


def _perception(quotas: Mapping[tuple[str, str, str], int], dataset: Dataset, seed: int) -> list[tuple[object, ...]]:
    """Rows of questions about entities, see `training.perception`: what the adaptor taught must stay readable."""
    perception = load_perception()
    facts = known_facts(dataset)
    shown = answered_examples(facts, perception)
    rows: list[tuple[object, ...]] = []
    for split in ("train", "validation"):
        count = quotas.get((split, "perception", "hybrid"), 0)
        for pair in perception_pairs(facts, perception, split, count, seed) if count else ():
            system, question = perception.ask(pair, shown[pair.task], hybrid=True)
            texts = (str(system.content), json.dumps(question.content), json.dumps(pair.answer, ensure_ascii=False))
            row = ("perception", "hybrid", "", TRAIN_END, split, *texts, 0, 0)
            rows.append((*row, True, *NOTHING_TO_REWARD[1:]))
    return rows


def _row(example: Example, user_id: str, as_of: datetime, split: str) -> tuple[object, ...]:
    hybrid = example.kind == "hybrid"
    version = FIXED_PROMPT if example.kind == "fixed" else "v1"
    system, question = load_prompt(example.agent, version).render(example.prompt_fields, hybrid)
    user = json.dumps(question.content) if hybrid else str(question.content)
    bought = list(dict.fromkeys(tag_text(leaf.leaf) for leaf in example.ahead))
    new = list(dict.fromkeys(tag_text(leaf.leaf) for leaf in example.ahead if leaf.new))
    return (
        *(example.agent, example.kind, user_id, as_of, split, str(system.content), user, example.answer),
        *(len(example.bought), sum(leaf.new for leaf in example.bought), hybrid, bought, new, example.shelf),
        example.judged.model_dump_json() if example.judged else "",
    )


def _write_vectors(path: Path, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
    table = pl.DataFrame({"text": texts, "vector": vectors.tolist()}, schema=VECTORS)
    table.write_parquet(path, compression="zstd")


def _card(
    table: pl.DataFrame, view: Dataset, settings: Settings, mixture: Mixture, content: bytes
) -> dict[str, object]:
    counts = table.group_by("agent", "kind", "split").len().sort("agent", "kind", "split").rows()
    tuned = table.filter(pl.col("user_id") != "")
    shares = tuned.group_by("agent").agg(pl.col("new_targets").sum() / pl.col("targets").sum()).sort("agent").rows()
    return {
        "data_set": view.info.name,
        "events_before": TRAIN_END.isoformat(),
        "held_out_baskets": HELD_OUT_BASKETS,
        "last_event": view.last_event.isoformat(),
        "settings": asdict(settings),
        "mixture": mixture.model_dump(),
        "kinds_that_the_data_can_not_have": sorted(ABSENT_KINDS),
        "households": tuned["user_id"].n_unique(),
        "examples": {f"{agent}.{kind}.{split}": count for agent, kind, split, count in counts},
        "new_share_of_targets": {agent: round(share, 3) for agent, share in shares},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
