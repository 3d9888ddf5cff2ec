"""Corrections held against the rows of a dataset, one after another, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.fix_rows import Seen, Tags
from tokloss_ray.exporting.sentences import Correction
from tokloss_ray.schema import IGN, IGNORE_INDEX


@dataclass
class Applied:
    """What `apply_fixes` did.

    Attributes:
        rows_read: rows in the corrected file, or with decisions.
        rows_changed: rows in which at least one tag changed.
        words_changed: words that got another tag.
        words_same: corrected words that already had the corrected tag in the dataset.
        files_changed: files in which at least one tag changed.
        files: files in the dataset.
    """

    rows_read: int = 0
    rows_changed: int = 0
    words_changed: int = 0
    words_same: int = 0
    files_changed: int = 0
    files: int = 0


class Fixes:
    """Checks each row that has corrections against the dataset and makes its new tags."""

    def __init__(self, by_id: bool, tags: tuple[str, ...] | None) -> None:
        self.by_id, self.allowed = by_id, set(tags or ())
        self.names: tuple[str, ...] | None = None
        self.of_file: Any = {}

    def start_pass(self, corrections: dict[tuple[str, int], Correction]) -> None:
        """Start a pass over the dataset."""
        self.missing = dict(corrections)
        changes = (change for row in corrections.values() for change in row.changes.values())
        self.tags = tuple(sorted({tag for change in changes for tag in change if tag is not None}))
        self.applied = Applied(rows_read=len(corrections))
        self.seen: Seen = set()
        self.new_tags: dict[str, Correction] = {}

    def wanted(self, source_row: int, id_: str | None) -> bool:
        """Whether the row has corrections."""
        return (id_ if self.by_id else source_row) in self.of_file

    def agrees(self, source_row: int, id_: str | None, tags: Tags) -> bool:
        """Whether the words that change have the tags with which they were exported, or their new ones."""
        changes = self.of_file[id_ if self.by_id else source_row].changes
        return all(index < len(tags) and tags[index] in change for index, change in changes.items())

    def fix(self, source_row: int, id_: str | None, words: list[str], tags: Tags) -> Tags | None:
        """The row's new tags.

        Raises:
            Refused: its words or tags are not those that were exported.
        """
        row: Correction = self.of_file[id_ if self.by_id else source_row]
        if self.missing.pop((row.source, row.source_row), None) is None:
            raise Refused(f"two rows of the dataset have the id {row.example_id}: match by file and row instead")
        for index, word in row.words.items():
            if index >= len(words) or words[index] != word:
                there = f"{words[index]!r}" if index < len(words) else "missing"
                raise Refused(f"word {index} of {row.name} is {word!r} in the labels but {there} in the dataset")
        result = list(tags)
        for index, (old, new) in row.changes.items():
            now = self._name(tags[index])
            if now == new:
                self.applied.words_same += 1
                continue
            if old is not None and now != old:
                raise Refused(
                    f"word {index} of {row.name} ({words[index]!r}) was exported as {old} but is "
                    f"{now or 'untagged'} in the dataset: its labels have changed since; export it again"
                )
            result[index] = self._value(new, tags, row)
        changed = sum(a != b for a, b in zip(tags, result, strict=True))
        self.applied.words_changed += changed
        self.applied.rows_changed += changed > 0
        return result if changed else None

    def _name(self, tag: Any) -> str | None:
        if tag is None or tag in (IGNORE_INDEX, IGN):
            return None
        if isinstance(tag, str):
            return tag
        if self.names is None:
            raise Refused("the dataset does not name its integer tags: list them in order with --tags")
        return self.names[tag] if 0 <= tag < len(self.names) else None

    def _value(self, name: str, tags: Tags, row: Correction) -> Any:
        """A tag as the dataset writes it."""
        if any(isinstance(tag, str) for tag in tags) or self.names is None:
            self.new_tags.setdefault(name, row)
            return name
        if name not in self.names:
            raise Refused(f"{row.name} gets the tag {name}, which the dataset does not have: {', '.join(self.names)}")
        return self.names.index(name)

    def check_all_found(self, dataset: str) -> None:
        """Refuse rows that are not in the dataset, and tags that no word of it has."""
        if self.missing:
            first = next(iter(self.missing.values()))
            raise Refused(
                f"{dataset} has no row {first.name} ({len(self.missing):,} of the corrected rows are missing)"
            )
        for tag, row in self.new_tags.items():
            if tag not in self.seen and tag not in self.allowed:
                known = ", ".join(sorted(t for t in self.seen if isinstance(t, str)))
                raise Refused(f"{row.name} gets the tag {tag}, which no word has yet ({known}): add it with --tags")
