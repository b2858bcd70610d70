"""`recgpt eval hybrid`: what hybrid prompts save, and what they lose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from langchain_core.messages import BaseMessage

from agents.context import Context
from agents.schemas import Request
from eval.hybrid import (
    ARMS,
    Answer,
    Question,
    agreement,
    hit_figures,
    perceive,
    perception_figures,
    prompt_sizes,
    read_answers,
    size_figures,
    whole_prompts,
    write_hybrid_page,
)
from eval.metrics import Estimate, estimate
from eval.offline import write_metrics
from eval.prefill import prefill_figures
from eval.splits import Case, evaluation_cases
from eval.tags import read_runs
from graphs.intent import graph
from prompts.template import load_prompt
from recgpt.console import progress_bar, reporting, say
from recgpt.evaluate import (
    ANSWERS,
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
from recgpt.output import cut_to_whole_lines, open_output
from recgpt.recommend import resolve_context, serve_for
from tools.adaptor import load_adaptor
from tools.dataset import open_dataset
from tools.embedding import Embedder, open_embedder
from tools.hybrid import HybridReader, Reading
from tools.llm import Endpoint
from tools.logs import logging_to
from tools.models import model_path, weights_name
from training.alignment import Alignment, align, read_alignments
from training.perception import held_out_questions, load_perception

OUT = Path("runs/eval/hybrid")
FITTING = (7000, 7600)
"""Tokens of the prompts whose prefill is timed: the longest that the default model's window still takes as text."""


def hybrid(
    out: Out = OUT,
    users: Users = 500,
    questions: Annotated[int, typer.Option(min=1, help="self-perception questions a task and held-out split")] = 100,
    agreements: Annotated[int, typer.Option(min=1, help="households whose answers are compared token by token")] = 12,
    prefills: Annotated[int, typer.Option(min=1, help="long prompts whose prefill is timed")] = 8,
    also: Annotated[
        list[Path] | None, typer.Option(help="one more adaptor, whose self-perception is measured too")
    ] = None,
    dataset: DatasetOption = None,
    model: Model = None,
    base_url: BaseUrl = None,
    profile: Profile = "cpu-compiled",
    concurrency: Concurrency = 16,
    setting: Setting = None,
) -> None:
    """Full text, hybrid prompts, text cut to their budget, leaf names: what each costs and what it is worth."""
    settings = [f"answers={ANSWERS}", *(setting or []), "representation=hybrid"]
    context = resolve_context(settings, dataset=dataset, base_url=base_url, model=model)
    data, embedder = open_dataset(context.dataset), open_embedder(context.embedding_model)
    adaptor = load_adaptor(context.adaptor, weights_name(context.model), embedder.name).adaptor
    cases = evaluation_cases(data, users)
    asked = held_out_questions(data, load_perception(), questions)
    with reporting("prompts of whole histories") as step:
        reading = Reading(model_path(context.model, step), adaptor.shape.tokens)
        prompts = [whole_prompts(data, context, case) for case in evaluation_cases(data, None)]
        sizes = [prompt_sizes(prompt, reading) for prompt in prompts]
    values = size_figures(sizes, adaptor.shape.tokens)
    low, high = FITTING
    long = [prompt for prompt, size in zip(prompts, sizes, strict=True) if low <= size.text <= high][:prefills]
    endpoints = {"text": _with(context, representation="text"), "hybrid": context.endpoint("planner")}
    with ExitStack() as stack:
        stack.enter_context(logging_to(LOG))
        serve_for(stack, context, profile)
        with reporting("prefill") as step:
            values |= _time_prefills(endpoints, long, step)
        for directory in also or []:
            endpoints[directory.name] = _with(context, adaptor=directory)
        _ask_missing(endpoints, asked, out / "answers.jsonl", concurrency)
        aligned = _align_missing(context, cases[:agreements], out / "alignment.jsonl", concurrency)
        for name, changed in ARMS.items():
            own = context.model_copy(update=changed)
            run_missing(stack, own, cases, out / f"{name}.jsonl", concurrency, profile, name, graph)
    with reporting("measuring") as step:
        step("self-perception")
        values |= perception_figures(asked, read_answers(out / "answers.jsonl"), reading)
        step("hit rates")
        values |= hit_figures({name: read_runs(out / f"{name}.jsonl") for name in ARMS}, data, embedder)
        step("agreement")
        values |= _agreements(aligned, context, embedder, reading)
        values = {f"hybrid.{key}": value for key, value in values.items()}
        write_metrics(out / "metrics.json", values)
        write_hybrid_page(out / "report.html", values)
    say(f"figures: {out / 'metrics.json'}; page: {out / 'report.html'}")


def _with(context: Context, **settings: object) -> Endpoint:
    return context.model_copy(update=settings).endpoint("planner")


def _time_prefills(
    endpoints: Mapping[str, Endpoint],
    long: Sequence[Mapping[bool, Sequence[BaseMessage]]],
    step: Callable[[str], None],
) -> dict[str, Estimate]:
    if not long:
        say(f"no household has a prompt of {FITTING[0]} to {FITTING[1]} tokens: prefill is not timed")
        return {}
    prompts = {"text": [prompt[False] for prompt in long], "hybrid": [prompt[True] for prompt in long]}
    asking = {way: replace(endpoint, answers=None) for way, endpoint in endpoints.items()}
    return asyncio.run(prefill_figures(asking, prompts, step))


def _ask_missing(endpoints: Mapping[str, Endpoint], asked: Sequence[Question], out: Path, concurrency: int) -> None:
    """Ask what is not answered yet, a line an answer."""
    cut_to_whole_lines(out)
    done = read_answers(out)
    with open_output(out) as write_line, progress_bar() as progress:
        task = progress.add_task("self-perception", total=len(asked) * len(endpoints), completed=len(done))

        def write(answer: Answer) -> None:
            write_line(answer)
            progress.advance(task)

        asyncio.run(perceive(endpoints, asked, done, 4 * concurrency, write))


def _align_missing(context: Context, cases: Sequence[Case], out: Path, concurrency: int) -> list[Alignment]:
    """Full-text prompts of households and the answers to them, as in training."""
    cut_to_whole_lines(out)
    done = {line.user_id for line in read_alignments(out)} if out.exists() else set()
    todo = [Request(user_id=case.user_id, as_of=case.as_of) for case in cases if case.user_id not in done]
    text = context.model_copy(update={"representation": "text", "planner_tokens": 1_000_000, "answers": None})
    with open_output(out) as write_line:

        def write(lines: Sequence[Alignment]) -> None:
            for line in lines:
                write_line(line)

        asyncio.run(align(text, todo, concurrency, write))
    return read_alignments(out)


def _agreements(
    lines: Sequence[Alignment], context: Context, embedder: Embedder, reading: Reading
) -> dict[str, Estimate]:
    """`agreement.<agent>` and `kl.<agent>`, over households."""
    from transformers import AutoModelForCausalLM

    adaptor = load_adaptor(context.adaptor, weights_name(context.model), embedder.name).adaptor
    llm = AutoModelForCausalLM.from_pretrained(model_path(context.model, say), dtype=torch.bfloat16).eval()
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
