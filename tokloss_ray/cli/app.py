"""The commands of `tokloss`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import inspect
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from tokloss_ray import __version__, stopping
from tokloss_ray.cli import mine as mining_commands
from tokloss_ray.cli.diff import diff
from tokloss_ray.cli.export import apply_fixes, export
from tokloss_ray.cli.report import report
from tokloss_ray.cli.show import show
from tokloss_ray.config import DTYPES, ScoreConfig, make_config, read_yaml
from tokloss_ray.errors import Interrupted, JobFailed, Refused, TokLossError, before_work
from tokloss_ray.text import visible


class _Commands(TyperGroup):
    """Signals end a command in its own exit code, where typer would make it 1 and say "Aborted"."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the command line."""
        with _interruptible():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command."""
        with _interruptible():
            return super().invoke(*args, **kwargs)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stopping.unwinding()
        raise Interrupted("interrupted", stopping.exit_code()) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS = {
    "Input and output": "model input output config revision tokenizer split limit overwrite",
    "Columns and tags": "tokens_column labels_column id_column tags keep partition_by add_column",
    "Tokens": "max_length overflow overlap label_all_subtokens keep_probs",
    "Speed and cluster": "dtype batch_tokens shard_tokens actors gpus_per_actor address stall_timeout storage_tries",
    "What is allowed": "max_error_rate trust_remote_code allow_pickle verbose",
}
_TYPES: dict[str, Any] = {
    "input": list[str],
    "keep": list[str],
    "partition_by": list[str],
    "add_column": list[str],
    "tags": str,
    "actors": str,
    "dtype": DTYPES,
    "overflow": Literal["window", "truncate", "reject"],
    "max_length": int,
    "overlap": int,
    "batch_tokens": int,
    "shard_tokens": int,
    "limit": int,
    "storage_tries": int,
    "gpus_per_actor": float,
    "max_error_rate": float,
    "stall_timeout": float,
    **dict.fromkeys(
        ("label_all_subtokens", "keep_probs", "overwrite", "verbose", "trust_remote_code", "allow_pickle"), bool
    ),
}
_speech = {"verbose": False}
_SHORT = {"model": "-m", "input": "-i", "output": "-o", "verbose": "-v"}


def _score_options(command: Callable[[ScoreConfig], None]) -> Callable[..., None]:
    """Give a command one option per setting, and --config; it is called with the validated settings.

    The options are made from the fields of `ScoreConfig`, so that flags and keys of the file cannot drift apart.
    """

    def run(**given: Any) -> None:
        path = given.pop("config")
        settings = read_yaml(path) if path else {}
        settings |= {name: value for name, value in given.items() if value not in (None, [])}
        command(make_config(settings))

    fields = {name: (info.description or "", info.default) for name, info in ScoreConfig.model_fields.items()}
    fields["config"] = ("YAML file with any of these settings; options on the command line win.", None)
    parameters = []
    for panel, names in _PANELS.items():
        for name in names.split():
            text, default = fields.pop(name)
            if isinstance(default, (str, float)):
                text += f" [dim]\\[default: {default}][/]"
            flag = name.replace("_", "-")
            # Also in the negative: an option must be able to win over a setting of the file.
            long = f"--{flag}/--no-{flag}" if _TYPES.get(name) is bool else f"--{flag}"
            flags = [long, *([_SHORT[name]] if name in _SHORT else [])]
            option = typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False)
            annotation: Any = Annotated[_TYPES.get(name, str) | None, option]
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
    assert not fields, f"settings without an option: {list(fields)}"
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Where is my tagger wrong, and where is my data wrong? Per-token losses over large corpora, on Ray.

    Start with [bold]tokloss demo[/], then [bold]tokloss score[/] on your own model and data.
    """


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder the results go to.")] = "tokloss-demo",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and transformers say.")] = False,
) -> None:
    """Score 10,000 German sentences with a small model, and report what is wrong. Both come with this package."""
    from tokloss_ray.demo import DATA, MODEL
    from tokloss_ray.mining.mine import mine
    from tokloss_ray.output.run import read_run

    before = read_run(output)
    if before is not None and not str(before.settings.get("model")).endswith("tokloss_ray/demo/model"):
        raise Refused(f"{output} holds the results of another run: name a folder for the demo with --output")
    _score(
        ScoreConfig(
            model=str(MODEL),
            input=(str(DATA),),
            output=output,
            id_column="id",
            add_column={"split": "validation"},
            partition_by=("split", "lang"),
            overwrite=True,
            verbose=verbose,
        )
    )
    mine(output)
    report(output)


@app.command()
@_score_options
def score(config: ScoreConfig) -> None:
    """Score every token of a corpus with a model. The same command again goes on where it stopped.

    [bold]tokloss score --model ./model --input 'data/*.parquet' --output out[/]

    Each row has a list of words and a list of tags (or input_ids and labels).

    Results are Parquet files in OUTPUT/scores; rows that cannot be scored go to OUTPUT/errors, with the reason.

    Exit codes: 0 done, 1 failed on the way, 2 wrong arguments or input, 3 more bad rows than allowed, 130 and 143
    interrupted.
    """
    _score(config)


@app.command()
@_score_options
def check(config: ScoreConfig) -> None:
    """Check arguments, input, model and tags as score would, and estimate size and time. Writes nothing."""
    _quiet(config.verbose)
    from tokloss_ray.cli.views.run import print_estimate
    from tokloss_ray.scoring.driver import check as check_job

    with Console(stderr=True).status("checking input and model"):
        plan, estimate = check_job(config)
    print_estimate(Console(), plan, estimate)


@app.command()
def status(output: Annotated[str, typer.Argument(help="Output folder of a run.")]) -> None:
    """Say how far a run is: shards done and missing, rates, errors by reason."""
    from tokloss_ray.cli.views.run import print_status
    from tokloss_ray.output.status import read_status

    with before_work():
        state = read_status(output)
    print_status(Console(), state)


@app.command()
def verify(output: Annotated[str, typer.Argument(help="Output folder of a finished run.")]) -> None:
    """Re-read a finished output and check every promise: nothing lost, nothing twice, every file whole."""
    from tokloss_ray.cli.views.run import print_verified
    from tokloss_ray.output.verify import verify as verify_output

    with before_work(), Console(stderr=True).status("reading every file"):
        found = verify_output(output)
    print_verified(Console(), found)
    if found.problems:
        remedy = (
            "some of them cannot be repaired: score it again with --overwrite"
            if found.beyond_repair
            else "the same tokloss score command scores the damaged shards again"
        )
        raise JobFailed(f"{len(found.problems):,} problems in {output}; {remedy}")


app.command()(mining_commands.mine)
app.command()(show)
app.command()(report)
app.command()(diff)
app.command()(export)
app.command("apply-fixes")(apply_fixes)


def _score(config: ScoreConfig) -> None:
    _quiet(config.verbose)
    from tokloss_ray.cli.views.run import ProgressView, print_summary
    from tokloss_ray.scoring.driver import score as score_job

    # Ray prints what its raylets say to sys.stdout, from a thread of its own.
    hidden = contextlib.nullcontext() if config.verbose else contextlib.redirect_stdout(io.StringIO())
    with ProgressView(Console(stderr=True)) as view, hidden:
        summary = score_job(config, view)
    print_summary(Console(), summary)


def _quiet(verbose: bool) -> None:
    """Keep the chatter of Ray, transformers and their C++ parts off the terminal, unless verbose."""
    _speech["verbose"] = verbose
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    # Ray's C++ core writes to file descriptor 2 whatever its log level; our own messages keep the terminal.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (by default the process's); errors are one sentence on standard error and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(__version__)
        return
    atexit.register(gc.freeze)  # else the interpreter looks through all of torch and Ray before it ends, for a second
    with stopping.handled():
        try:
            app(arguments)
        except Exception as error:
            shown = _shown(error)
            stopping.unwinding()
            _say(shown)
            sys.exit(shown.exit_code)


def _shown(error: Exception) -> TokLossError:
    """What a person is told of an error. After a signal nothing else: what fails then, fails because of it."""
    if stopping.received() and not isinstance(error, Interrupted):
        detail = "".join(traceback.format_exception(error)) if _speech["verbose"] else ""
        return Interrupted("interrupted", stopping.exit_code(), detail)
    if isinstance(error, TokLossError):
        return error
    detail = "".join(traceback.format_exception(error))
    return TokLossError(f"{type(error).__name__}: {error} (this should not happen; please report it)", detail)


def _say(error: TokLossError) -> None:
    """Print the sentence. It may quote an id or a file's name, and a terminal would obey what is in them."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(visible(str(error)), markup=False, highlight=False)
    if error.detail:
        if _speech["verbose"]:
            for line in error.detail.split("\n"):
                console.print(visible(line), markup=False, highlight=False)
        else:
            console.print("(--verbose shows where it came from)", style="dim")


if __name__ == "__main__":
    from tokloss_ray.__main__ import main as start

    start()
