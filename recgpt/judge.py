"""`recgpt judge` and `recgpt eval judge`: judged texts to tune the judge on, and to measure it by."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import typer
from rich.panel import Panel
from rich.prompt import Prompt
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agents import checks, claims
from agents.context import Context
from agents.judging import fact_lines
from agents.reviewer import QUESTION_PROMPT
from eval.human import IMPORTERS, VALUES, Rating, by_text, contradictions, read_ratings
from eval.judge import (
    JUDGES,
    Judge,
    JudgeRun,
    grade_figures,
    injected,
    injection_figures,
    judge_texts,
    people_figures,
    reliability,
    write_judge_page,
)
from eval.judged import JudgedText, Split, read_judged
from eval.lines import read_json_lines
from eval.metrics import Estimate, estimate
from eval.offline import write_metrics
from prompts.rubric import Label, Rubric, Subject, load_rubrics
from prompts.template import load_prompt
from recgpt.console import complain, console, reporting, say
from recgpt.evaluate import EVALUATION, LOG, BaseUrl, Concurrency, DatasetOption, Out, Profile, Setting
from recgpt.output import Write, counted_output, cut_to_whole_lines, open_output, write_whole
from recgpt.recommend import PATIENT, resolve_context, resolve_judge, serve_for
from tools.dataset import open_dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import SettingError
from tools.logs import logging_to
from tools.models import BASE_MODEL, DEFAULT_MODEL, JUDGE_MODEL, sha256, weights_name
from tools.retrieval import open_index
from training.candidates import Sampled, draws_of, grade_samples, sample_texts
from training.judge import write_judge_examples
from training.judged import Maker, make_judged
from training.reward_model import open_reward, pair_accuracy, read_contexts, score_contexts
from training.runs import claim
from training.view import training_view

TEXTS = Path("runs/judge/texts.jsonl")
LABELS = TEXTS.with_name("labels.jsonl")
ORDER_SEED = 7
"""Of the order in which texts are labelled by hand, the same for all annotators."""


def data(
    dataset: Annotated[Path, typer.Option(help="data set directory")] = Path("data/completejourney"),
    embedding_model: Annotated[str, typer.Option(help="of tags and leaf names")] = PACKAGED_MODEL,
    out: Annotated[Path, typer.Option(help="directory to write")] = TEXTS.parent,
    households: Annotated[int, typer.Option(min=5, help="seven tenths train, one validates, two test")] = 400,
    most: Annotated[
        int, typer.Option(min=1, help="examples a kind, dimension and negative label; of other labels thrice as many")
    ] = 100,
    seed: Annotated[int, typer.Option(help="of all choices")] = 7,
) -> None:
    """Build texts whose labels are known from what households really bought, and the judge's training examples."""
    whole = open_dataset(dataset)
    index = open_index(whole, open_embedder(embedding_model))
    texts = out / TEXTS.name
    with reporting("judged texts") as step:
        lines = make_judged(training_view(whole), index, split_counts(households), seed, step)
        write_whole(texts, (f"{line.model_dump_json()}\n" for line in lines))
    made = read_judged(texts)
    card = write_judge_examples(made, out, most, seed, sha256(texts))
    say(f"{texts}: {len(made):,} texts; {out / 'examples.parquet'}: {card['examples']}")


def sample(
    out: Annotated[Path, typer.Option(help="directory of the samples; goes on with what is there")] = Path(
        "runs/judge/policy"
    ),
    dataset: DatasetOption = None,
    households: Annotated[int, typer.Option(min=5, help="the first so many of `recgpt judge data`")] = 60,
    samples: Annotated[int, typer.Option(min=1, help="of each context: tags, and one item's explanations")] = 4,
    model: Annotated[str, typer.Option(help="model of the agents that write")] = DEFAULT_MODEL,
    judge: Annotated[str, typer.Option(help="model of the judge")] = JUDGE_MODEL,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    seed: Annotated[int, typer.Option(help="that of `recgpt judge data`")] = 7,
    setting: Setting = None,
) -> None:
    """Let the policy write candidates for the households of `recgpt judge data`, and the judge grade them."""
    policy = resolve_context([PATIENT, *(setting or [])], dataset=dataset, base_url=base_url, model=model)
    judging = resolve_judge([PATIENT, *(setting or [])], dataset=dataset, base_url=base_url, model=judge)
    drafts, texts = out / "drafts.jsonl", out / TEXTS.name
    weights = {"policy": weights_name(policy.model), "judge": weights_name(judging.model)}
    settings = sorted(setting or [])
    claim(out, {**weights, "prompts": judge_digest(judging), "settings": settings, "samples": samples, "seed": seed})
    whole = open_dataset(policy.dataset)
    with reporting("contexts") as step:
        step("opening the index")
        index = open_index(whole, open_embedder(policy.embedding_model))
        draws = list(draws_of(Maker(training_view(whole), index, seed), split_counts(households)))
    for path in (drafts, texts):
        cut_to_whole_lines(path)
    done = {one.context for one in read_json_lines(drafts, Sampled)}
    todo = [draw for draw in draws if draw.context not in done]
    if todo:
        with _writing(policy, profile, drafts, "candidates", len(draws), len(done)) as write:
            asyncio.run(sample_texts(policy, todo, samples, seed, concurrency, write))
    sampled = read_json_lines(drafts, Sampled)
    graded = {text.id for text in read_judged(texts)} if texts.exists() else set()
    total = sum(len(one.tasks) for one in sampled)
    if len(graded) < total:
        with _writing(judging, profile, texts, "verdicts", total, len(graded)) as write:
            asyncio.run(grade_samples(judging, sampled, graded, concurrency, write))
    say(f"{texts}: {len(read_judged(texts)):,} graded candidates")


@contextmanager
def _writing(context: Context, profile: str, out: Path, what: str, total: int, done: int) -> Iterator[Write]:
    """A server for a context, and a function that writes a line and moves the bar."""
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        serve_for(stack, context, profile)
        yield stack.enter_context(counted_output(out, what, total, done))


def split_counts(households: int) -> dict[Split, int]:
    """How many households of each split."""
    return {"train": households * 7 // 10, "validation": households // 10, "test": households // 5}


def import_labels(
    source: Annotated[str, typer.Argument(help=f"one of {', '.join(IMPORTERS)}")],
    directory: Annotated[Path, typer.Argument(help="where its files are")],
    out: Annotated[Path, typer.Option(help="directory to write")] = Path("runs/judge/human"),
) -> None:
    """Take over public ratings by people: texts and ratings as two files of JSON lines."""
    if source not in IMPORTERS:
        raise SettingError(f"there is no source {source!r}; take one of {', '.join(IMPORTERS)}")
    texts, ratings = IMPORTERS[source](directory)
    for name, lines in (("texts", texts), ("labels", ratings)):
        write_whole(out / source / f"{name}.jsonl", (f"{line.model_dump_json()}\n" for line in lines))
    say(f"{out / source}: {len(texts):,} texts, {len(ratings):,} ratings")


def label(
    annotator: Annotated[str, typer.Option(help="who labels")],
    texts: Annotated[Path, typer.Option(help="what to label, see `recgpt judge data`")] = TEXTS,
    out: Annotated[Path, typer.Option(help="JSON lines; goes on with what this annotator has done")] = LABELS,
    dimension: Annotated[list[str] | None, typer.Option(help="label these alone")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
) -> None:
    """Label texts by hand, a dimension at a time; several people may label the same ones."""
    every = read_judged(texts)
    # In a shuffled order: in the one in which they were made, the faults would come last.
    order = np.random.default_rng(ORDER_SEED).permutation(len(every))
    own_split = _split(split)
    found = [every[place] for place in order if every[place].split == own_split]
    cut_to_whole_lines(out)
    ratings = read_ratings(out, {text.id for text in every}) if out.exists() else []
    done = {(rating.text_id, rating.dimension) for rating in ratings if rating.annotator == annotator}
    todo = [
        (text, rubric)
        for text in found
        for rubric in load_rubrics(text.task.kind)
        if rubric.graded and rubric.dimension in (dimension or [rubric.dimension])
        if (text.id, rubric.dimension) not in done
    ]
    keys: dict[str, Label] = {"p": "positive", "n": "neutral", "b": "negative"}
    with open_output(out) as write:
        for number, (text, rubric) in enumerate(todo, 1):
            show_text(text, rubric, f"{len(done) + number} of {len(done) + len(todo)}")
            key = Prompt.ask("p positive, n neutral, b bad (negative), s skip, q quit", choices=[*keys, "s", "q"])
            if key == "q":
                break
            if key in keys:
                value = VALUES[keys[key]]
                write(Rating(text_id=text.id, dimension=rubric.dimension, annotator=annotator, value=value))
    say(f"labels of {annotator}: {out}; the same command goes on")


def join(
    files: Annotated[list[Path], typer.Argument(help="what others wrote with `recgpt judge label`")],
    texts: Annotated[Path, typer.Option(help="the texts that were labelled")] = TEXTS,
    out: Annotated[Path, typer.Option(help="labels of all, JSON lines")] = LABELS,
) -> None:
    """Take over labels by others, and say where annotators contradict each other; both sides are kept."""
    known = {text.id for text in read_judged(texts)}
    told = [rating for file in files for rating in read_ratings(file, known)]
    kept = read_ratings(out, known) if out.exists() else []
    new = [rating for rating in told if rating not in kept]
    with open_output(out) as write:
        for rating in new:
            write(rating)
    ratings = read_ratings(out, known)
    say(f"{out}: {len(new)} labels taken over, {len(ratings)} by {len({one.annotator for one in ratings})} annotators")
    for text_id, dimension, values in contradictions(ratings):
        said = ", ".join(f"{name} {value:+g}" for name, value in sorted(values.items()))
        complain("contradiction", f"{text_id}, {dimension}: {said}; agreement is measured with both")


def show_text(text: JudgedText, rubric: Rubric, progress: str) -> None:
    """One page of the terminal: facts, text and what the labels mean. No label or source of the text is shown."""
    console.clear()
    facts = Table("id", "of", "fact", box=None)
    for line in fact_lines([fact for fact in text.task.facts if fact.name in rubric.facts]):
        facts.add_row(line["id"], line["name"], Text(line["text"]))
    scale = Text("\n".join(f"{name}: {meaning}" for name, meaning in rubric.scale.model_dump().items()))
    console.print(Rule(f"{rubric.dimension}, {progress}"), Text(rubric.definition), facts)
    console.print(Panel(Text(text.task.subject), title="text to judge"), scale)


def evaluate(
    out: Out = Path("runs/eval/judge"),
    texts: Annotated[Path, typer.Option(help="judged texts, see `recgpt judge data`")] = TEXTS,
    count: Annotated[
        int, typer.Option("--texts-a-kind", min=1, help="texts of the split, tags and explanations each")
    ] = 300,
    split: Annotated[str, typer.Option(help="test, or validation for choices")] = "test",
    swaps: Annotated[int, typer.Option(min=0, help="of these judged in the opposite order too")] = 60,
    injections: Annotated[int, typer.Option(min=0, help="texts with an injection")] = 140,
    tuned: Annotated[str, typer.Option(help="model of the tuned judge")] = JUDGE_MODEL,
    untuned: Annotated[str | None, typer.Option(help="model of the untuned judge; empty for none")] = BASE_MODEL,
    human: Annotated[
        list[Path] | None, typer.Option(help="directory with texts.jsonl and labels.jsonl by people")
    ] = None,
    human_count: Annotated[int, typer.Option(min=1, help="texts of each such directory")] = 100,
    reward: Annotated[
        list[Path] | None, typer.Option(help="trained reward model whose order of the texts is measured too")
    ] = None,
    seed: Annotated[int, typer.Option(help="of which texts are taken")] = 7,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Measure the judge: against known labels, in the other order, under injections, and against people."""
    own_split = _split(split)
    chosen = _chosen(read_judged(texts, own_split), count, seed)
    attacked = injected([text for text in chosen if text.task.kind == "explanations"], injections, seed)
    people = {directory.name: _of_people(directory, human_count, seed) for directory in human or []}
    rewards = rewards_by_loss(reward or [])
    values: dict[str, Estimate] = {}
    curves: dict[str, list[tuple[float, float, int]]] = {}
    for name, model in {"tuned": tuned, "untuned": untuned}.items():
        if not model:
            continue
        context = resolve_judge([*EVALUATION, *(setting or [])], base_url=base_url, model=model)
        claim(
            out / name,
            {
                "texts": sha256(texts),
                "split": split,
                "weights": weights_name(context.model),
                "prompts": judge_digest(context),
                "settings": sorted(setting or []),
            },
        )
        todo: list[tuple[JudgedText, Judge, bool]] = [(text, judge, False) for judge in JUDGES for text in chosen]
        todo += [(text, judge, True) for judge in JUDGES for text in _first(chosen, swaps)]
        todo += [(text, "agents", False) for text in (attacked if name == "tuned" else [])]
        todo += [(text, "agents", False) for told, _ in people.values() for text in told]
        todo = list({(text.id, judge, reverse): (text, judge, reverse) for text, judge, reverse in todo}.values())
        _judge_missing(context, todo, out / name / "runs.jsonl", concurrency, profile, f"{name} judge")
        runs = read_json_lines(out / name / "runs.jsonl", JudgeRun)
        for key, value in grade_figures(chosen, runs, context.judge_threshold).items():
            values[f"judge.{_with_model(key, name)}"] = value
        for directory, (_, ratings) in people.items():
            values |= {
                f"people.{directory}.{name}.{key}": value for key, value in people_figures(ratings, runs).items()
            }
        if name == "tuned":
            # The file may hold runs of earlier calls too, with other injections.
            tried = {text.id for text in (*chosen, *attacked)}
            own = [run for run in runs if run.text_id in tried]
            values |= {f"injection.{key}": value for key, value in injection_figures(own).items()}
        curves[name] = reliability(chosen, runs)
    shares = {}
    for loss, adapter in rewards.items():
        with reporting(f"reward model {adapter}") as step:
            shares[loss] = reward_shares(adapter, read_judged(texts, own_split), own_split, step)
    values |= reward_figures(shares)
    write_metrics(out / "metrics.json", values)
    write_judge_page(out / "report.html", values, curves)
    say(f"figures: {out / 'metrics.json'}; page: {out / 'report.html'}")


def _split(name: str) -> Split:
    if name not in get_args(Split):
        raise SettingError(f"there is no split {name!r}; take one of {', '.join(get_args(Split))}")
    return cast(Split, name)


def judge_digest(context: Context) -> str:
    """Digest of what decides a verdict: prompt files, rubrics, the threshold, and the code and words of checks."""
    prompts = (
        ("evaluator", context.evaluator_prompt),
        ("reviewer", context.reviewer_prompt),
        ("one_shot", "v1"),
        ("reviewer", QUESTION_PROMPT),
    )
    files = (Path(checks.__file__), Path(claims.__file__), claims.WORDS_FILE)
    rubrics = [rubric for kind in get_args(Subject) for rubric in load_rubrics(kind)]
    return digest_of(
        prompts,
        *(path.read_text(encoding="utf-8") for path in files),
        *(rubric.model_dump_json() for rubric in rubrics),
        str(context.judge_threshold),
    )


def digest_of(prompts: Iterable[tuple[str, str]], *others: str) -> str:
    """Digest of prompt files, by agent and version, and of other text."""
    told = [load_prompt(agent, version).model_dump_json() for agent, version in prompts]
    return hashlib.sha256("".join([*told, *others]).encode()).hexdigest()[:16]


def _with_model(key: str, name: str) -> str:
    """`tags.agents.kappa` as `tags.agents.tuned.kappa`."""
    kind, judge, figure = key.split(".")
    return f"{kind}.{judge}.{name}.{figure}"


def rewards_by_loss(adapters: Sequence[Path]) -> dict[str, Path]:
    """Trained reward models by their loss, which their figures are called by.

    Raises:
        SettingError: one is no trained reward model, or two have one loss.
    """
    found: dict[str, Path] = {}
    for adapter in adapters:
        loss, _ = _loss_and_length(adapter)
        if loss in found:
            raise SettingError(
                f"--reward {found[loss]} and --reward {adapter} both have the loss {loss}: expected one of each loss; "
                "leave one out, and measure it with another --out"
            )
        found[loss] = adapter
    return found


def _loss_and_length(adapter: Path) -> tuple[str, int]:
    """Of a reward model's training, by its card: the loss, and the most tokens of a context."""
    try:
        recipe = json.loads((adapter / "card.json").read_text(encoding="utf-8"))["recipe"]
        return recipe["loss"], recipe["max_length"]
    except (OSError, ValueError, KeyError) as error:
        raise SettingError(
            f"--reward {adapter}: expected the card.json of a reward model, found {error!r}; give the directory "
            "`adapter` that `recgpt train reward` wrote"
        ) from error


def reward_shares(
    adapter: Path, texts: Sequence[JudgedText], split: Split, report: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """By kind and context of a split the share of pairs that a reward model has in the right order."""
    model, tokenizer = open_reward(adapter, report)
    _, longest = _loss_and_length(adapter)
    shares: dict[str, dict[str, float]] = {}
    for kind in get_args(Subject):
        candidates: defaultdict[str, list[JudgedText]] = defaultdict(list)
        for text in texts:
            if text.task.kind == kind and text.grade:
                candidates[text.context].append(text)
        read = {name: read_contexts(own, split, tokenizer, longest) for name, own in candidates.items()}
        if lost := sum(missing for _, missing in read.values()):
            complain(f"reward, {kind}", f"{lost} candidates of long contexts did not fit, and are not in its figures")
        contexts = {name: packed for name, (fitting, _) in read.items() for packed in fitting}
        scores = score_contexts(model, list(contexts.values()), report)
        counted = [pair_accuracy(found, one.grades) for found, one in zip(scores, contexts.values(), strict=True)]
        shares[kind] = {name: right / pairs for name, (right, pairs) in zip(contexts, counted, strict=True)}
    return shares


def reward_figures(shares: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Estimate]:
    """`reward.<loss>.pair_accuracy`: of pairs of different grades the share in the right order, the mean over contexts.

    `reward.<loss>.<kind>.pair_accuracy` is of tags or explanations alone; `reward.listwise-pointwise.pair_accuracy` the
    difference, context by context, of those that both have: what fits into a model differs.

    Args:
        shares: by loss, see `reward_shares`.
    """
    every = {
        loss: {(kind, context): share for kind, told in own.items() for context, share in told.items()}
        for loss, own in shares.items()
    }
    figures = {f"reward.{loss}.pair_accuracy": estimate(list(values.values())) for loss, values in every.items()}
    for loss, own in shares.items():
        figures |= {
            f"reward.{loss}.{kind}.pair_accuracy": estimate(list(values.values())) for kind, values in own.items()
        }
    if {"listwise", "pointwise"} <= every.keys():
        listwise, pointwise = every["listwise"], every["pointwise"]
        gained = [share - pointwise[key] for key, share in listwise.items() if key in pointwise]
        figures["reward.listwise-pointwise.pair_accuracy"] = estimate(gained)
    return figures


def _chosen(texts: Sequence[JudgedText], count: int, seed: int) -> list[JudgedText]:
    """So many graded texts of each kind, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return _first([texts[place] for place in order if texts[place].grade], count)


def _first(texts: Sequence[JudgedText], count: int) -> list[JudgedText]:
    """The first so many of each kind."""
    return [text for kind in get_args(Subject) for text in [one for one in texts if one.task.kind == kind][:count]]


def _of_people(directory: Path, count: int, seed: int) -> tuple[list[JudgedText], dict[str, dict[str, list[float]]]]:
    """Texts and the ratings of them by people."""
    texts = read_judged(directory / "texts.jsonl")
    ratings = by_text(read_ratings(directory / "labels.jsonl", {text.id for text in texts}))
    rated = {text_id for values in ratings.values() for text_id in values}
    texts = [text for text in texts if text.id in rated]
    chosen = [texts[place] for place in np.random.default_rng(seed).permutation(len(texts))[:count]]
    own = {text.id for text in chosen}
    return chosen, {name: {key: value for key, value in rated.items() if key in own} for name, rated in ratings.items()}


def _judge_missing(
    context: Context,
    todo: Sequence[tuple[JudgedText, Judge, bool]],
    out: Path,
    concurrency: int,
    profile: str,
    what: str,
) -> None:
    """Judge what a file has not yet, a line each; a server is started where something is missing."""
    cut_to_whole_lines(out)
    done = {run.key for run in read_json_lines(out, JudgeRun)}
    missing = [(text, judge, reverse) for text, judge, reverse in todo if (text.id, judge, reverse) not in done]
    if not missing:
        return
    with _writing(context, profile, out, what, len(todo), len(todo) - len(missing)) as write:
        asyncio.run(judge_texts(context, missing, concurrency, write))
