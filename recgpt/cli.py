"""The `recgpt` command: what a person types, and how errors reach that person."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from agents.schemas import Recommendation
from prompts.template import PromptError
from recgpt import (
    data,
    evaluate,
    everything,
    explanations,
    flywheel,
    hybrid,
    judge,
    recommend,
    train,
    training_table,
)
from recgpt.console import complain, say
from recgpt.diagram import mermaid
from recgpt.recommend import resolve_context
from tools.errors import RecGPTError, SettingError
from tools.models import DEFAULT_MODEL, model_path
from tools.serving import PROFILES, load_adapter, named_profile, serve_command, serve_environment

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="RecGPT-V2: recommendations by reasoning about intent."
)


@app.callback()
def end_cleanly_on_sigterm() -> None:
    """Being asked to end is like Ctrl-C: a model server that was started is stopped on the way out."""
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda number, frame: sys.exit(128 + number))


def explain_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Expected errors are a sentence on stderr and exit code 1, not a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (RecGPTError, PromptError) as error:
            complain("error", str(error))
            raise typer.Exit(1) from error

    return run


data_app = typer.Typer(no_args_is_help=True, help="Make and check data set directories.")
import_app = typer.Typer(no_args_is_help=True, help="Turn your own data into a data set directory.")
train_app = typer.Typer(no_args_is_help=True, help="Make training data and tune the agents.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure on baskets that no weight has seen.")
judge_app = typer.Typer(no_args_is_help=True, help="Judged texts: make them, label them, take labels over.")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")
app.add_typer(eval_app, name="eval")
app.add_typer(train_app, name="train")
data_app.add_typer(import_app, name="import")

data_app.command("build")(explain_errors(data.build))
data_app.command("check")(explain_errors(data.check))
data_app.command("index")(explain_errors(data.index))
data_app.command("entities")(explain_errors(data.entities))
import_app.command("csv")(explain_errors(data.import_csv))
import_app.command("amazon-reviews")(explain_errors(data.import_amazon_reviews))
train_app.command("data")(explain_errors(train.data))
train_app.command("sft")(explain_errors(train.sft))
train_app.command("towers")(explain_errors(train.towers))
train_app.command("alignment")(explain_errors(train.alignment))
train_app.command("adaptor")(explain_errors(train.adaptor))
train_app.command("reward")(explain_errors(train.reward))
train_app.command("ranker")(explain_errors(train.ranker))
train_app.command("grpo")(explain_errors(train.grpo))
train_app.command("curves")(explain_errors(train.curves))
train_app.command("flywheel")(explain_errors(flywheel.flywheel))
train_app.command("all")(explain_errors(everything.train_all))
eval_app.command("all")(explain_errors(evaluate.everything))
eval_app.command("tags")(explain_errors(evaluate.tags))
eval_app.command("arm")(explain_errors(evaluate.arm))
eval_app.command("hybrid")(explain_errors(hybrid.hybrid))
eval_app.command("explanations")(explain_errors(explanations.explanations))
eval_app.command("training")(explain_errors(training_table.training))
eval_app.command("judge")(explain_errors(judge.evaluate))
eval_app.command("retrieval")(explain_errors(evaluate.retrieval))
eval_app.command("answers")(explain_errors(evaluate.answers))
eval_app.command("table")(explain_errors(evaluate.table))
eval_app.command("compare")(explain_errors(evaluate.compare))
judge_app.command("data")(explain_errors(judge.data))
judge_app.command("sample")(explain_errors(judge.sample))
judge_app.command("label")(explain_errors(judge.label))
judge_app.command("join")(explain_errors(judge.join))
judge_app.command("import")(explain_errors(judge.import_labels))
app.command("recommend")(explain_errors(recommend.recommend))


@app.command()
@explain_errors
def serve(
    profile: Annotated[str, typer.Option(help=f"one of {', '.join(PROFILES)}")] = "cpu",
    model: Annotated[str | None, typer.Option(help="the default model, a hub name or a directory")] = None,
    base_url: Annotated[str | None, typer.Option(help="where to listen")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIRECTORY of a LoRA adapter beside the model; may be given several times"),
    ] = None,
) -> None:
    """Serve a model with vLLM until it is interrupted."""
    adapters = {}
    for text in adapter or []:
        name, equals, directory = text.partition("=")
        if not equals or not (Path(directory) / "adapter_config.json").is_file():
            raise SettingError(f"--adapter {text!r}: expected NAME=DIRECTORY with an adapter_config.json in it")
        adapters[name] = Path(directory)
    context = resolve_context([], model=model, base_url=base_url)
    chosen = named_profile(profile)
    command = serve_command(chosen, context.model, context.base_url, say, adapters)
    say(f"serving {context.model} at {context.base_url}; end with Ctrl-C")
    os.execvpe(command[0], command, serve_environment(chosen, context.model))


@app.command(name="adapter")
@explain_errors
def load(
    name: Annotated[str, typer.Argument(help="the name that requests will ask for")],
    directory: Annotated[Path, typer.Argument(help="LoRA adapter, such as runs/train/sft/adapter")],
    base_url: Annotated[str | None, typer.Option(help="the running server")] = None,
) -> None:
    """Load an adapter into a running server, without a restart; `--set expert_model=NAME` then uses it."""
    context = resolve_context([], base_url=base_url)
    load_adapter(context.base_url, name, directory, context.api_key.get_secret_value())
    say(f"{context.base_url} serves {directory} as {name}")


@app.command()
@explain_errors
def prepare() -> None:
    """Make the default model once, so that the first server starts at once."""
    say(f"model ready: {model_path(DEFAULT_MODEL, say)}")


@app.command()
@explain_errors
def diagram() -> None:
    """Print the diagram of the whole graph (Mermaid), drawn from the compiled graph itself."""
    sys.stdout.write(mermaid())


@app.command()
@explain_errors
def schema() -> None:
    """Print the JSON schema of an output line."""
    json.dump(Recommendation.model_json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
