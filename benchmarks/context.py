"""What context costs and what it gains: entity F1 and padded tokens with 0, 1, 2 and 4 sentences on each side.

python benchmarks/context.py --model my-model --data corpus.parquet [--labels-column final] [--json context.json]

The corpus has the columns `id`, tokens and tags; sentences with the same id up to its last dash are a document. As a
control, the same documents are scored with their sentences in a random order over the whole corpus: context that has
nothing to do with the sentence. Nothing can be gained by a model that has never seen context in training.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import save, say, show
from corpora import DEMO_MODEL

from tokloss_ray.config import ScoreConfig
from tokloss_ray.mining.mine import mine
from tokloss_ray.output.records import read_records
from tokloss_ray.scoring.driver import score

SENTENCES = (0, 1, 2, 4)


def prepare(data: str, folder: Path, shuffled: bool) -> str:
    """The corpus with a column `document`; shuffled: its sentences in any order, in documents as long as before."""
    table = pq.read_table(data)
    documents = [name.rsplit("-", 1)[0] for name in table.column("id").to_pylist()]
    if shuffled:
        table = table.take(np.random.default_rng(0).permutation(table.num_rows))
    path = folder / f"{'shuffled' if shuffled else 'in-order'}.parquet"
    pq.write_table(table.append_column("document", pa.array(documents)), path)
    return str(path)


def figures(model: str, path: str, folder: Path, labels: str | None, sentences: int) -> dict[str, Any]:
    """F1 of entities, mean loss, padded tokens and seconds of the model with so many sentences on each side."""
    output = str(folder / f"{Path(path).stem}-{sentences}")
    context: dict[str, Any] = {"context_sentences": sentences, "document_column": "document"} if sentences else {}
    score(ScoreConfig(model=model, input=(path,), output=output, labels_column=labels, id_column="id", **context))
    tables = mine(output, write=False)
    micro = next(row for row in tables["entities"].to_pylist() if (row["mode"], row["level"]) == ("default", "micro"))
    tags = tables["tags"]
    records = read_records(output).values()
    return {
        "order": Path(path).stem,
        "sentences": sentences,
        "f1": round(micro["f1"], 4),
        "precision": round(micro["precision"], 4),
        "recall": round(micro["recall"], 4),
        "mean_loss": round(sum(tags["sum"].to_pylist()) / sum(tags["count"].to_pylist()), 4),
        "padded_tokens": sum(record.padded_tokens for record in records),
        "seconds": round(sum(record.seconds["score"] for record in records), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels-column")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shuffled in (False, True):
            path = prepare(args.data, folder, shuffled)
            for sentences in SENTENCES if not shuffled else SENTENCES[1:]:
                rows.append(figures(args.model, path, folder, args.labels_column, sentences))
    show("sentences of context on each side", list(rows[0]), [list(row.values()) for row in rows])
    say("Padded tokens are what a GPU computes; seconds are those of the model, on this machine.")
    save(args.json, "context", {"rows": rows})


if __name__ == "__main__":
    main()
