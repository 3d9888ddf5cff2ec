"""Label issues of the same words with the same labels and the same suggestion, as one: one decision may do for all.

`label_issue_groups` (slice columns first), made of the rows of `entity_issues` (where tags mark no spans, of those rows
of `label_issues` whose label is not the prediction); groups of one are left out: `text`, `label_tags`,
`suggested_tags`, `count`, `score` (the highest), `mean_score` float64, `summary` ("Bayern: 41 times O, suggested
B-LOC"), and the place of the first: `output`, `example_id`, `source`, `source_row`, `start`, `stop`. Highest `count`
first, then highest `score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.ranks.selection import SCORE
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.entity_issues import entity_issues_merge
from tokloss_ray.mining.tables.grouping import COUNT, Order, group_rows, sorted_by
from tokloss_ray.mining.tables.label_issues import label_issues_merge
from tokloss_ray.mining.tables.reasons import number_text
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import KEY
from tokloss_ray.ragged import list_array, one_array
from tokloss_ray.tags.schemes import read_tag_set

TAGS = ("label_tags", "suggested_tags")
SUMMARY = "summary"
_PLACE = (*KEY, "start", "stop")
_ORDER: Order = [(COUNT, "descending"), (SCORE, "descending"), *((name, "ascending") for name in (*KEY, "start"))]


def issue_groups(issues: pa.Table, by: Sequence[str] = ()) -> pa.Table:
    """The table `label_issue_groups`. issues: the table `entity_issues`, or `words_as_issues`."""
    joined = [pc.binary_join(one_array(issues.column(name)), " ") for name in TAGS]
    group, first = group_rows([*(issues.column(name) for name in (*by, "text")), *joined], issues.num_rows)
    count = np.bincount(group, minlength=len(first))
    total = np.bincount(group, weights=issues.column(SCORE).to_numpy(), minlength=len(first))
    several = np.flatnonzero(count > 1)
    # Issues come with the highest score first, in each slice too: the first of a group has its highest.
    at = pa.array(first[several])
    rows, (label, suggested) = issues.take(at), (tags.take(at) for tags in joined)
    times = number_text(pa.array(count[several], pa.int64()))
    words = one_array(rows.column("text"))
    summary = pc.binary_join_element_wise(words, ": ", times, " times ", label, ", suggested ", suggested, "")
    columns = {name: rows.column(name) for name in (*by, "text", *TAGS)}
    columns |= {COUNT: pa.array(count[several], pa.int64()), SCORE: rows.column(SCORE)}
    columns |= {"mean_score": pa.array(total[several] / count[several], pa.float64()), SUMMARY: summary}
    return sorted_by(pa.table(columns | {name: rows.column(name) for name in _PLACE}), by, _ORDER)


def words_as_issues(issues: pa.Table, by: Sequence[str] = ()) -> pa.Table:
    """The rows of `label_issues` whose label is not the prediction, with the columns of `entity_issues` that
    `issue_groups` needs: each word is an issue by itself."""
    known = pc.and_(pc.is_valid(issues.column("word")), pc.is_valid(issues.column("suggested_label")))
    rows = issues.filter(pc.and_(known, pc.not_equal(issues.column("label"), issues.column("predicted"))))
    each = np.arange(rows.num_rows + 1)
    tags = {
        name: list_array(one_array(rows.column(of)), each)
        for name, of in zip(TAGS, ("label", "suggested_label"), strict=True)
    }
    start = rows.column("word_index")
    place = {name: rows.column(name) for name in KEY} | {
        "start": start,
        "stop": pc.add(start, pa.scalar(1, pa.int32())),
    }
    return pa.table(
        {name: rows.column(name) for name in by}
        | {"text": rows.column("word"), **tags, SCORE: rows.column(SCORE), **place}
    )


def _final(partials: Mapping[str, pa.Table], settings: MiningSettings) -> pa.Table:
    by, limit = settings.by, settings.limit
    if read_tag_set(settings.tags, settings.scheme) is not None:
        return issue_groups(entity_issues_merge([partials["entity_issues"]], by, limit), by)
    return issue_groups(
        words_as_issues(label_issues_merge([partials["label_issues"]], by, settings.rank, limit), by), by
    )


LABEL_ISSUE_GROUPS = Table(
    name="label_issue_groups",
    title="The same words with the same labels and the same suggestion",
    shown=(COUNT, SCORE, "example_id", SUMMARY),
    final=_final,
)
