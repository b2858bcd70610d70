"""`recgpt train flywheel`: samples, judge, reward model, GRPO and evaluation, round after round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from agents.context import Context
from eval.judged import JudgedText, read_judged
from eval.tags import read_runs
from recgpt.console import reporting, say
from recgpt.judge import TEXTS
from recgpt.output import write_whole
from recgpt.recommend import resolve_context
from recgpt.steps import RunStep, steps_in
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import SettingError
from tools.models import DEFAULT_MODEL, JUDGE_MODEL, adapter_of, sha256, weights_name
from tools.serving import named_profile
from training.flywheel import Flywheel, Round, best_round, judge_round, new_candidates, read_round, reason_to_end
from training.grpo_recipe import RECIPES
from training.grpo_rows import read_rows
from training.runs import claim


@dataclass(frozen=True)
class Wheel:
    """What all rounds have in common, and where each keeps what."""

    out: Path
    data: Path
    start: str
    judge: str
    texts: tuple[Path, ...]
    users: int
    households: int
    recipe: str
    profile: str
    seed: int

    def of_round(self, number: int) -> Path:
        """The directory of a round; that of round 0 has the evaluation of the policy that all started from."""
        return self.out / f"round-{number}"

    def policy(self, number: int) -> str:
        """A round's policy; of round 0 the one that all started from."""
        return str(self.of_round(number) / "policy" / "adapter") if number else self.start

    def arm(self, number: int) -> Path:
        """What a round's policy wrote before the validation baskets."""
        return self.of_round(number) / "arm.jsonl"

    def candidates(self, number: int) -> Path:
        """The graded samples of a round whose texts no earlier round had; complete where it is there."""
        return self.of_round(number) / "candidates.jsonl"

    def figures(self, number: int) -> Path:
        """A round's figures; the round is complete where they are there."""
        return self.of_round(number) / "figures.json"


def flywheel(
    rounds: Annotated[int, typer.Option(min=1, help="so many at most; one that is not kept is the last")] = 3,
    out: Annotated[Path, typer.Option(help="a directory a round; goes on with what is there")] = Path(
        "runs/train/flywheel"
    ),
    data: Annotated[Path, typer.Option(help="what `recgpt train data` wrote")] = Path("runs/train/data"),
    adapter: Annotated[
        str, typer.Option(help="what it starts from: the default model, or an adapter's directory")
    ] = DEFAULT_MODEL,
    judge: Annotated[str, typer.Option(help="model of the judge, and what each reward model is made from")] = (
        JUDGE_MODEL
    ),
    texts: Annotated[
        list[Path] | None, typer.Option(help="judged texts that each reward model learns from", show_default=str(TEXTS))
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="households that validate")] = 100,
    households: Annotated[
        int, typer.Option(min=5, help="the policy's samples are of the first so many of `recgpt judge data`")
    ] = 60,
    recipe: Annotated[str, typer.Option(help=f"of GRPO: one of {', '.join(RECIPES)}")] = "cpu",
    profile: Annotated[str, typer.Option(help="how to start a server: cpu, cpu-compiled or fp8")] = "cpu-compiled",
    seed: Annotated[
        int, typer.Option(help="that of `recgpt judge data`, and of all other draws; each round's GRPO has its own")
    ] = 7,
) -> None:
    """Policy samples, judge, reward model, GRPO, evaluation (section 7): again while validation improves."""
    if recipe not in RECIPES:
        raise SettingError(f"there is no recipe {recipe!r}; take one of {', '.join(RECIPES)}")
    # What is missing must be found out now, not hours later.
    named_profile(profile)
    if adapter_of(adapter) is None:
        raise SettingError(f"{adapter!r} is no adapter, which GRPO goes on from; take one from `recgpt train sft`")
    wheel = Wheel(out, data, adapter, judge, tuple(texts or [TEXTS]), users, households, recipe, profile, seed)
    context = resolve_context([])
    constructed = [text for path in wheel.texts for text in read_judged(path)]
    settings: dict[str, object] = {
        "adapter": weights_name(adapter),
        "judge": weights_name(judge),
        "dataset": open_dataset(context.dataset).info.name,
        "data_sha256": read_rows(data, "expert")[1],
        "texts_sha256": [sha256(path) for path in wheel.texts],
        "users": users,
        "households": households,
        "recipe": recipe,
        "seed": seed,
    }
    claim(out, settings)
    with steps_in(out) as run_step:
        done = _finished(wheel)
        while (reason := reason_to_end(done, rounds)) is None:
            _write(wheel, settings, done, None)
            done.append(_turn(wheel, done, constructed, context, run_step))
            _tell(done[-1])
        _write(wheel, settings, done, reason)
    best = wheel.policy(best_round(done))
    say(f"the flywheel ends: {reason}; figures: {out / 'flywheel.json'}")
    say(f"best policy: {best}; `recgpt serve --model {best}` serves it")


def _finished(wheel: Wheel) -> list[Round]:
    """The rounds that are complete."""
    rounds: list[Round] = []
    while one := read_round(wheel.figures(len(rounds) + 1)):
        rounds.append(one)
    return rounds


def _turn(
    wheel: Wheel, before: Sequence[Round], constructed: Sequence[JudgedText], context: Context, run_step: RunStep
) -> Round:
    """One round, step by step; what is there already is not made again.

    On a CPU a server has one model: each step that needs one starts it and stops it again.
    """
    number, best = len(before) + 1, best_round(before)
    start, here = wheel.policy(best), wheel.of_round(number)
    kept = [wheel.candidates(one.number) for one in before if one.kept]
    if not best:
        _evaluate(wheel, 0, "the policy that it starts from, validation", run_step)
    name = f"round {number}, "
    candidates = wheel.candidates(number)
    samples = here / "samples"
    run_step(
        f"{name}the policy's samples, graded by the judge",
        [
            *("judge", "sample", "--out", str(samples), "--households", str(wheel.households)),
            *("--model", start, "--judge", wheel.judge, "--profile", wheel.profile, "--seed", str(wheel.seed)),
        ],
        candidates.is_file(),
    )
    if not candidates.is_file():
        sampled = read_judged(samples / TEXTS.name)
        new = new_candidates(sampled, [*constructed, *(text for path in kept for text in read_judged(path))])
        write_whole(candidates, (f"{text.model_dump_json()}\n" for text in new))
        say(f"{candidates}: {len(new):,} of {len(sampled):,} samples are new candidates")
    reward = here / "reward"
    learnt = [*wheel.texts, *kept, candidates]
    run_step(
        f"{name}reward model",
        [
            *("train", "reward", *_repeated("--texts", learnt), "--model", wheel.judge),
            *("--seed", str(wheel.seed), "--out", str(reward)),
        ],
        _is_trained(reward),
    )
    policy = here / "policy"
    run_step(
        f"{name}GRPO",
        [
            *("train", "grpo", "--data", str(wheel.data), "--dataset", str(context.dataset), "--adapter", start),
            *("--reward", str(reward / "adapter")),
            *("--recipe", wheel.recipe, "--seed", str(wheel.seed + number - 1), "--out", str(policy)),
        ],
        _is_trained(policy),
    )
    _evaluate(wheel, number, f"{name}validation", run_step)
    with reporting("comparing") as step:
        step("figures")
        figures = judge_round(
            number,
            (start, wheel.policy(number)),
            (read_runs(wheel.arm(best)), read_runs(wheel.arm(number))),
            open_dataset(context.dataset),
            open_embedder(context.embedding_model),
        )
    write_whole(wheel.figures(number), [figures.model_dump_json(indent=2), "\n"])
    return figures


def _evaluate(wheel: Wheel, number: int, what: str, run_step: RunStep) -> None:
    """What a round's policy writes before households' validation baskets."""
    arm = wheel.arm(number)
    run_step(
        what,
        [
            *("eval", "arm", "--out", str(arm), "--users", str(wheel.users), "--seed", str(wheel.seed)),
            *("--model", wheel.policy(number), "--profile", wheel.profile),
        ],
        arm.is_file() and arm.read_bytes().count(b"\n") >= wheel.users,
    )


def _is_trained(run: Path) -> bool:
    """Whether a run wrote its adapter: the card is written last."""
    return (run / "adapter" / "card.json").is_file()


def _repeated(option: str, values: Iterable[Path]) -> list[str]:
    return [word for value in values for word in (option, str(value))]


def _tell(one: Round) -> None:
    """A round's figures on the terminal."""
    for key, value in one.after.items():
        say(f"round {one.number}: {key} {value}, before {one.before[key]}")
    kept = "kept" if one.kept else "not kept"
    say(f"round {one.number}: {kept}; mean difference of both {one.difference}, {one.difference.n} households")


def _write(wheel: Wheel, settings: dict[str, object], rounds: Sequence[Round], ended: str | None) -> None:
    """All rounds so far as `flywheel.json`."""
    best = wheel.policy(best_round(rounds))
    state = Flywheel(best=best, ended=ended, settings=settings, rounds=list(rounds))
    write_whole(wheel.out / "flywheel.json", [state.model_dump_json(indent=2), "\n"])
