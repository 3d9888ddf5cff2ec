"""Label issues of the same word with the same label and the same suggestion, as one: one decision may do for all.

`label_issue_groups` (slice columns first), made of the rows of `label_issues` whose label is not the prediction; groups
of one are left out: `word`, `label`, `suggested_label`, `count`, `score` (the highest), `mean_score` float64,
`other_places`, `same_label`, `same_suggestion` (of the first row), `summary` ("Bayern: 41 times O, suggested B-LOC"),
and the place of the first: `output`, `example_id`, `source`, `source_row`, `word_index`. Highest `count` first, then
highest `score`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.ranks.selection import SCORE
from tokloss_ray.mining.tables.grouping import COUNT, Order, group_rows, sorted_by
from tokloss_ray.mining.tables.label_issues import label_issues_merge
from tokloss_ray.mining.tables.reasons import PLACES, number_text
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import KEY

GROUP = ("word", "label", "suggested_label")
MEAN_SCORE, SUMMARY = "mean_score", "summary"
_ORDER: Order = [
    (COUNT, "descending"),
    (SCORE, "descending"),
    *((name, "ascending") for name in (*KEY, "word_index")),
]


def issue_groups(issues: pa.Table, by: Sequence[str] = ()) -> pa.Table:
    """The table `label_issue_groups`. issues: the table `label_issues`."""
    known = pc.and_(pc.is_valid(issues.column("word")), pc.is_valid(issues.column("suggested_label")))
    issues = issues.filter(pc.and_(known, pc.not_equal(issues.column("label"), issues.column("predicted"))))
    group, first = group_rows([issues.column(name) for name in (*by, *GROUP)], issues.num_rows)
    count = np.bincount(group, minlength=len(first))
    total = np.bincount(group, weights=issues.column(SCORE).to_numpy(), minlength=len(first))
    several = np.flatnonzero(count > 1)
    # Issues come with the highest score first, in each slice too: the first of a group has its highest.
    at = issues.take(pa.array(first[several]))
    label, suggested, word = (at.column(name) for name in ("label", "suggested_label", "word"))
    times = number_text(pa.array(count[several], pa.int64()))
    summary = pc.binary_join_element_wise(word, ": ", times, " times ", label, ", suggested ", suggested, "")
    columns = {name: at.column(name) for name in (*by, *GROUP)}
    columns |= {COUNT: pa.array(count[several], pa.int64()), SCORE: at.column(SCORE)}
    columns |= {MEAN_SCORE: pa.array(total[several] / count[several], pa.float64())}
    columns |= {name: at.column(name) for name in PLACES}
    columns |= {SUMMARY: summary} | {name: at.column(name) for name in (*KEY, "word_index")}
    return sorted_by(pa.table(columns), by, _ORDER)


LABEL_ISSUE_GROUPS = Table(
    name="label_issue_groups",
    title="Words with the same label and the same suggestion",
    shown=(SUMMARY, SCORE, "example_id"),
    final=lambda partials, settings: issue_groups(
        label_issues_merge([partials["label_issues"]], settings.by, settings.rank, settings.limit), settings.by
    ),
)
