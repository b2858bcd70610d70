"""`recgpt eval hybrid`: what hybrid prompts save, and what they lose."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from langchain_core.messages import BaseMessage

from agents.context import UNBOUNDED, Context
from agents.schemas import Request
from eval.hybrid import (
    ARMS,
    BUDGETED,
    WIDTH,
    Question,
    agreement,
    hit_figures,
    hybrid_budgets,
    perceive,
    perception_figures,
    prompt_sizes,
    read_answers,
    size_figures,
    whole_figures,
    whole_prompts,
    width_of,
    write_blank_adaptor,
    write_hybrid_page,
)
from eval.metrics import Estimate, estimate
from eval.offline import read_metrics, write_metrics
from eval.prefill import prefill_figures
from eval.splits import Case, evaluation_cases
from eval.tags import TagRun, read_runs, settings_of
from graphs.intent import graph
from prompts.template import load_prompt
from recgpt.console import complain, reporting, say
from recgpt.evaluate import (
    EVALUATION,
    LOG,
    BaseUrl,
    Concurrency,
    DatasetOption,
    Model,
    Out,
    Profile,
    Setting,
    Users,
    run_missing,
)
from recgpt.output import counted_output, cut_to_whole_lines, open_output
from recgpt.recommend import resolve_context, serve_for
from tools.adaptor import load_adaptor
from tools.dataset import open_dataset
from tools.embedding import Embedder, open_embedder
from tools.errors import SettingError
from tools.hybrid import HybridReader, Reading
from tools.llm import Endpoint
from tools.logs import logging_to
from tools.machine import model_type
from tools.models import model_path, weights_name
from training.alignment import Alignment, align, read_alignments
from training.perception import held_out_questions, load_perception
from training.runs import claim

OUT = Path("runs/eval/hybrid")
FITTING = (7000, 7600)
"""Tokens of the prompts whose prefill is timed: the longest that the default model's window still takes as text."""


def hybrid(
    out: Out = OUT,
    users: Users = 500,
    arm: Annotated[
        list[str] | None, typer.Option(help=f"a way to show a history: {', '.join(ARMS)}", show_default="all")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="self-perception questions a task and held-out split")] = 100,
    agreements: Annotated[int, typer.Option(min=1, help="households whose answers are compared token by token")] = 12,
    prefills: Annotated[int, typer.Option(min=0, help="long prompts whose prefill is timed; 0 for none")] = 4,
    also: Annotated[
        list[Path] | None, typer.Option(help="one more adaptor, of any width, whose self-perception is measured too")
    ] = None,
    titles: Annotated[
        Path | None, typer.Option(help="the corpus of `train adaptor`: translation is measured too, on held-out titles")
    ] = None,
    dataset: DatasetOption = None,
    model: Model = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Full text, hybrid prompts, text cut to their budget, leaf names, blanks: what each costs and what it is worth."""
    chosen = [name for name in ARMS if name in (arm or ARMS)]
    if unknown := sorted(set(arm or []) - ARMS.keys()):
        raise SettingError(f"there is no arm {', '.join(unknown)}; take some of {', '.join(ARMS)}")
    if "hybrid" not in chosen and set(chosen) & set(BUDGETED) and not (out / "hybrid.jsonl").exists():
        raise SettingError(f"{' and '.join(BUDGETED)} have the length of hybrid prompts: ask for --arm hybrid too")
    settings = [*EVALUATION, *(setting or []), "representation=hybrid", f"planner_tokens={UNBOUNDED}"]
    context = resolve_context(settings, dataset=dataset, base_url=base_url, model=model)
    data, embedder = open_dataset(context.dataset), open_embedder(context.embedding_model)
    trained = load_adaptor(context.adaptor, weights_name(context.model), embedder.name)
    tokens = trained.adaptor.shape.tokens
    # A small run after a larger one measures what that one left too: no figure loses households.
    cases = evaluation_cases(data, max([users, *(len(_runs(out, name)) for name in ARMS)]))
    asked = held_out_questions(data, load_perception(), questions, titles)
    claim(out, {"settings": settings_of(context), "adaptor": trained.sha256, "questions": _digest(asked)})
    endpoints = {"text": _with(context, representation="text"), "hybrid": context.endpoint("planner")}
    endpoints |= _further(context, also or [], trained.model, embedder.name)
    with reporting("prompts of whole histories") as step:
        reading = Reading(model_path(context.model, step), tokens)
        prompts = []
        for case in cases:
            prompts.append(whole_prompts(data, context, case))
            step(f"{len(prompts)} of {len(cases)}")
        sizes = [prompt_sizes(prompt, reading) for prompt in prompts]
    low, high = FITTING
    long = [prompt for prompt, size in zip(prompts, sizes, strict=True) if low <= size.text <= high][:prefills]
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        serve_for(stack, context, profile)
        _ask_missing(endpoints, asked, out / "answers.jsonl", concurrency)
        fresh = [case for case in cases if case.user_id not in trained.aligned][:agreements]
        aligned = _align_missing(context, fresh, out / "alignment.jsonl", concurrency)
        with reporting("prefill") as step:
            timed = _time_prefills(endpoints, long, out / f"prefill-{profile}-{len(long)}.json", step)
        for name in chosen:
            own, asked_of, budgets = context.model_copy(update={"representation": ARMS[name]}), cases[:users], {}
            if name == "blank":
                write_blank_adaptor(trained, embedder, out / "blank")
                own = own.model_copy(update={"adaptor": out / "blank"})
            if name in BUDGETED:
                budgets = hybrid_budgets(read_runs(out / "hybrid.jsonl"))
                asked_of = [case for case in cases[:users] if case.user_id in budgets]
                if len(asked_of) < len(cases[:users]):
                    complain(name, f"only the {len(asked_of)} households that have a hybrid prompt; see --arm hybrid")
            run_missing(stack, own, asked_of, out / f"{name}.jsonl", concurrency, profile, name, graph, budgets)
    arms = {name: runs for name in ARMS if (runs := _runs(out, name))}
    with reporting("measuring") as step:
        step("self-perception")
        answers = {
            (number, way.partition("@")[0]): answer
            for (number, way), answer in read_answers(out / "answers.jsonl").items()
            if way in endpoints
        }
        if also and f"{tokens}{WIDTH}" not in {way for _, way in answers}:
            answers |= {
                (number, f"{tokens}{WIDTH}"): told for (number, way), told in answers.items() if way == "hybrid"
            }
        values = {**size_figures(sizes, tokens), **timed, **perception_figures(asked, answers, reading)}
        step("hit rates")
        sizes_of = {case.user_id: size for case, size in zip(cases, sizes, strict=True)}
        values |= {**hit_figures(arms, data, embedder), **whole_figures(arms, sizes_of)}
        step("agreement")
        values |= _agreements(aligned, context, embedder, reading)
        values = {f"hybrid.{key}": value for key, value in values.items()}
        write_metrics(out / "metrics.json", values)
        write_hybrid_page(out / "report.html", values)
    say(f"figures: {out / 'metrics.json'}; page: {out / 'report.html'}")


def _with(context: Context, **settings: object) -> Endpoint:
    return context.model_copy(update=settings).endpoint("planner")


def _further(context: Context, directories: Sequence[Path], model: str, embedder: str) -> dict[str, Endpoint]:
    """Endpoints of the curve's adaptors by their width, `2_tokens@1a2b3c4d`: answers are kept by the weights too.

    The adaptor that is measured is a point of the curve unless another of its width is given.
    """
    found: dict[str, Endpoint] = {}
    for directory in directories:
        trained = load_adaptor(directory, model, embedder)
        width = f"{trained.adaptor.shape.tokens}{WIDTH}"
        if any(way.startswith(f"{width}@") for way in found):
            raise SettingError(f"--also {directory} is the second adaptor of its width, {width}: a curve has one each")
        found[f"{width}@{trained.sha256[:8]}"] = _with(context, adaptor=directory)
    return dict(sorted(found.items(), key=lambda item: width_of(item[0].partition("@")[0])))


def _digest(asked: Sequence[Question]) -> str:
    content = [[one.task, one.entity, one.answer, one.choices, str(one.text)] for one in asked]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _runs(out: Path, name: str) -> list[TagRun]:
    path = out / f"{name}.jsonl"
    cut_to_whole_lines(path)
    return read_runs(path) if path.exists() else []


def _time_prefills(
    endpoints: Mapping[str, Endpoint],
    long: Sequence[Mapping[bool, Sequence[BaseMessage]]],
    kept: Path,
    step: Callable[[str], None],
) -> dict[str, Estimate]:
    """What was timed is kept: a run that goes on times nothing twice."""
    if kept.exists():
        return read_metrics(kept)
    if not long:
        say(f"prefill is not timed: no household, or none asked for, has {FITTING[0]} to {FITTING[1]} tokens of text")
        return {}
    prompts = {"text": [prompt[False] for prompt in long], "hybrid": [prompt[True] for prompt in long]}
    asking = {way: replace(endpoints[way], answers=None) for way in prompts}
    figures = asyncio.run(prefill_figures(asking, prompts, step))
    write_metrics(kept, figures)
    return figures


def _ask_missing(endpoints: Mapping[str, Endpoint], asked: Sequence[Question], out: Path, concurrency: int) -> None:
    """Ask what is not answered yet, a line an answer."""
    cut_to_whole_lines(out)
    done = {key for key in read_answers(out) if key[1] in endpoints}
    with counted_output(out, "self-perception", len(asked) * len(endpoints), len(done)) as write:
        asyncio.run(perceive(endpoints, asked, done, 2 * concurrency, write))


def _align_missing(context: Context, cases: Sequence[Case], out: Path, concurrency: int) -> list[Alignment]:
    """Full-text prompts of households and the answers to them, as in training."""
    cut_to_whole_lines(out)
    answering = weights_name(context.model)
    done = {line.user_id for line in read_alignments(out, answering)} if out.exists() else set()
    todo = [Request(user_id=case.user_id, as_of=case.as_of) for case in cases if case.user_id not in done]
    text = context.model_copy(update={"representation": "text", "answers": None})
    with open_output(out) as write_line:

        def write(lines: Sequence[Alignment]) -> None:
            for line in lines:
                write_line(line)

        asyncio.run(align(text, todo, concurrency, write))
    users = {case.user_id for case in cases}
    return [line for line in read_alignments(out, answering) if line.user_id in users]


def _agreements(
    lines: Sequence[Alignment], context: Context, embedder: Embedder, reading: Reading
) -> dict[str, Estimate]:
    """`agreement.<agent>` and `kl.<agent>`, over households."""
    from transformers import AutoModelForCausalLM

    adaptor = load_adaptor(context.adaptor, weights_name(context.model), embedder.name).adaptor
    llm = AutoModelForCausalLM.from_pretrained(model_path(context.model, say), dtype=model_type()).eval()
    reader = HybridReader(adaptor, llm, reading.placeholder)
    found: dict[str, list[float]] = {}
    for line in lines:
        prompt = load_prompt(line.agent, line.version)
        text, hybrid = (reading.example(prompt.render(line.values, way), line.answer) for way in (False, True))
        same, divergence = agreement(
            reader, text, hybrid, lambda texts: torch.from_numpy(embedder.embed(texts)) if texts else torch.empty(0)
        )
        found.setdefault(f"agreement.{line.agent}", []).append(same)
        found.setdefault(f"kl.{line.agent}", []).append(divergence)
    return {key: estimate(values) for key, values in found.items()}
