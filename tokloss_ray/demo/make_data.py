"""Write the demo data from WikiANN's German validation split.

    python -m tokloss_ray.demo.make_data de-val.parquet tokloss_ray/demo/data/panx_de_validation.parquet

The tag names are declared in the file, as `datasets` does it, so that the demo maps tags by name.
"""

from __future__ import annotations

import sys

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from tokloss_ray.demo.train_model import TAGS

ROWS_PER_GROUP = 2_500


def main(source: str, target: str) -> None:
    """Add the declared tag names to a Parquet file and write it in row groups."""
    features = Features(
        {
            "id": Value("string"),
            "tokens": List(Value("string")),
            "ner_tags": List(ClassLabel(names=TAGS)),
            "lang": Value("string"),
        }
    )
    dataset = Dataset(pq.read_table(source)).cast(features)
    pq.write_table(dataset.data.table, target, row_group_size=ROWS_PER_GROUP, compression="zstd", compression_level=19)


if __name__ == "__main__":
    main(*sys.argv[1:])
