"""The mining tables. To add one, write a module with a `Table` in it and name that here."""

from __future__ import annotations

from tokloss_ray.mining.tables import (
    certainty,
    confusion,
    entities,
    entity_errors,
    entity_issues,
    issue_groups,
    label_issues,
    lengths,
    loss_distribution,
    tokens,
    worst_sequences,
)
from tokloss_ray.mining.tables.table import Table

TABLES: tuple[Table, ...] = (
    certainty.CERTAINTY,
    loss_distribution.LOSS_DISTRIBUTION,
    lengths.LENGTHS,
    confusion.TAGS,
    confusion.CONFUSION,
    entities.ENTITIES,
    entity_errors.ENTITY_ERROR_COUNTS,
    entities.MALFORMED_TAGS,
    tokens.TOKENS,
    tokens.WORDS,
    tokens.INCONSISTENT,
    worst_sequences.SEQUENCES,
    entity_errors.ENTITY_ERRORS,
    issue_groups.LABEL_ISSUE_GROUPS,
    label_issues.SENTENCE_ISSUES,
    entity_issues.ENTITY_ISSUES,
    label_issues.LABEL_ISSUES,
    certainty.UNCERTAIN_SEQUENCES,
    certainty.UNCERTAIN_PLACES,
    certainty.UNCERTAIN_WORDS,
)
"""In the order of the terminal: what to look at first stands last, above the prompt."""
