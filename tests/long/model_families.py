"""Write docs/models.md: how the job scores every architecture that transformers can classify tokens with.

python -m tests.long.model_families [--rows 200] [--output docs/models.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers

from tests.support import families
from tests.support.inline import Row
from tokloss_ray.demo import DATA

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
MEANINGS = {
    "exact": "Scored in padded batches. Padding changes nothing beyond rounding.",
    "equal-length": "Padding would change the results. Scored in batches of equally long sequences, which is exact.",
    "refused": "Cannot be scored, for the reason given.",
    "not made": "No tiny model could be made here, for the reason given. A real one is tested when it is loaded.",
}


def sentences(count: int) -> tuple[list[list[str]], list[Row]]:
    """Sentences for the vocabulary, and others to be scored: the first of them 150 words long, for windows."""
    rows = pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).to_pylist()
    joined: Row = {"id": "long", "tokens": [], "ner_tags": []}
    for row in rows[1000:1010]:
        joined["tokens"] += row["tokens"]
        joined["ner_tags"] += row["ner_tags"]
    one_word = {"id": "short", "tokens": ["Stadt"], "ner_tags": [0]}
    return [row["tokens"] for row in rows[:300]], [joined, one_word, *rows[300 : 300 + count - 2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes = {}
    vocabulary, rows = sentences(options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = families.make_tokenizer(Path(scratch, "tokenizer"), vocabulary)
        for number, name in enumerate(families.all_names()):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcomes[name] = families.outcome(name, Path(scratch, str(number)), tokenizer, rows)
            print(f"{name}: {outcomes[name].kind} {outcomes[name].why}", flush=True)
    options.output.write_text(page(outcomes, options.rows), encoding="utf-8")


def page(outcomes: dict[str, families.Outcome], rows: int) -> str:
    """The document."""
    made = [outcome for outcome in outcomes.values() if outcome.scored is not None]
    text = f"""\
        # Which models are scored, and how exactly

        Written by `make models`; do not edit. The list is that of transformers {transformers.__version__}: every
        architecture behind `AutoModelForTokenClassification`, and settings of some (after a comma) that change how
        they treat padding, order or length. For each, a tiny model is made with random, non-zero weights, including
        the padding token's embedding. {rows} sentences, some in windows, are scored by the job and then one at a time
        without padding. The figures are the largest difference of a loss, divided by one plus the loss: up to 1e-4
        counts as exact by the project's contract. "Padded" is what padded batches give, which is what the job would
        do without checking; "as scored" is what the job gives; "packed" is what it gives where sequences stand end to
        end without padding, as they do on a GPU, and nothing where they cannot.

        What a model needs is not looked up here. Each actor tests the model it has loaded, with a few made-up rows,
        alone and in batches (`tokloss_ray/scoring/stages/probe.py`). So weights count: a MobileBERT whose padding
        embedding is zero is exact in padded batches, too. `tokloss check` reports the result before a run, and the
        summary after it. Rows with fewer tokens than a model's code can handle (Funnel, CANINE) go to `errors/`
        as `too_short`.

        A PEFT adapter (LoRA and its kin; `pip install "tokloss-ray[peft]"`) is a model, too: `--model` takes
        its folder, and the model that its `adapter_config.json` names is loaded and the adapter merged into
        its weights, in float32, before they become `--dtype`. The names of its tags are those of a
        `config.json` beside it (`model.config.save_pretrained`), or of `--tags`. Adapters that add tokens
        (prompt and prefix tuning) are refused, and so are models with a CRF, whose loss is of whole
        sentences.
        """
    text = "\n\n".join(
        textwrap.fill(paragraph.strip(), 120, break_on_hyphens=False)
        for paragraph in textwrap.dedent(text).strip().split("\n\n")
    )
    text += "\n\n| | architectures | |\n| --- | ---: | --- |\n"
    for kind, meaning in MEANINGS.items():
        text += f"| {kind} | {sum(outcome.kind == kind for outcome in outcomes.values())} | {meaning} |\n"
    worst = max(max(outcome.scored or 0.0, outcome.packed or 0.0) for outcome in made)
    text += f"\nLargest difference of all scored architectures: {worst:.1e}. "
    text += f"{sum(outcome.packed is not None for outcome in made)} can be packed.\n\n"
    text += "| architecture | | padded | as scored | packed | why |\n| --- | --- | ---: | ---: | ---: | --- |\n"
    for name, outcome in outcomes.items():
        found = outcome.padded, outcome.scored, outcome.packed
        figures = ["" if figure is None else f"{figure:.0e}" for figure in found]
        text += f"| {name} | {outcome.kind} | {' | '.join(figures)} | {outcome.why.replace('|', '/')} |\n"
    return text


if __name__ == "__main__":
    main()
