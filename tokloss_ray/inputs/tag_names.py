"""What the data call their tags, held against the model's."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow_types import is_text
from tokloss_ray.inputs.listing import Inspected, declared_tags
from tokloss_ray.inputs.nested import types_of, value_of
from tokloss_ray.inputs.unit import Columns
from tokloss_ray.inputs.units import sample_json
from tokloss_ray.schema import IGN
from tokloss_ray.tags.schemes import OUTSIDE, read_tag_set


def find_tags(
    given: tuple[str, ...] | None,
    inspected: list[Inspected],
    columns: Columns,
    model_tags: Sequence[str],
    warnings: list[str],
) -> tuple[str, ...] | None:
    """The names that the data declare for its tags, from `given` (--tags) or from ClassLabel features.

    Raises:
        Refused: a declared name is no tag of the model, or two files declare different names.
    """
    if columns.labels is None:
        return None
    if columns.spans is not None:
        tag_set = read_tag_set(tuple(model_tags))
        if tag_set is None or OUTSIDE not in model_tags:
            raise Refused(
                f"the model's tags mark no spans, so that there are none for labelled text: {', '.join(model_tags)}"
            )
        if given is not None:
            raise Refused("--tags is for integer tags, but the input has labelled spans: use --label-map")
        return None
    declared = [
        (item.file.source, names)
        for item in inspected
        if item.schema is not None and (names := declared_tags(item.schema, columns.labels))
    ]
    if given is not None:
        names, where = given, "--tags"
    elif declared:
        where, names = declared[0]
        other = next((source for source, their in declared if their != names), None)
        if other is not None:
            raise Refused(f"{where} and {other} declare different tag names for column {columns.labels}")
    else:
        _warn_integers(inspected, columns, model_tags, warnings)
        return None
    missing = [name for name in names if name not in model_tags and name != IGN]
    if missing:
        raise Refused(
            f"{where} names tags that the model does not have: {', '.join(missing)} "
            f"(data: {', '.join(names)}; model: {', '.join(model_tags)})"
        )
    return names


def text_tags(item: Inspected, labels: str | None) -> bool:
    """Whether the tags of a file are strings; a text file's first tag says it."""
    if labels is None:
        return False
    if item.schema is not None:
        return is_text(getattr(types_of(item.schema)[labels], "value_type", pa.null()))
    lists = (value_of(row, labels) for row in sample_json(item.file))
    tags = (tag for found in lists if isinstance(found, list) for tag in found)
    return isinstance(next((tag for tag in tags if tag is not None), ""), str)


def _warn_integers(
    inspected: list[Inspected], columns: Columns, model_tags: Sequence[str], warnings: list[str]
) -> None:
    for item in inspected:
        if not text_tags(item, columns.labels):
            mapping = ", ".join(f"{i}={tag}" for i, tag in enumerate(model_tags))
            warnings.append(
                f"the data does not name its integer tags: using the model's ({mapping}); to name them, use --tags"
            )
            return
