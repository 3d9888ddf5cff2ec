"""Parts are combined as they come, eight of a level at a time, in a tree whose shape depends on their number alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_FAN = 8


class Tree(Generic[T]):
    """Parts that are combined as they come; at most seven of each level are held.

    combine: some parts in order -> one. made: told of each part and its level before it joins.
    """

    def __init__(self, combine: Callable[[Sequence[T]], T], made: Callable[[T, int], None] | None = None) -> None:
        self.combine, self.made = combine, made
        self.levels: list[list[T]] = []

    def push(self, part: T, level: int = 0) -> None:
        """Add the next part; one that is combined already has a level above 0."""
        if self.made:
            self.made(part, level)
        while len(self.levels) <= level:
            self.levels.append([])
        self.levels[level].append(part)
        if len(self.levels[level]) == _FAN:
            whole = self.combine(self.levels[level])
            self.levels[level] = []
            self.push(whole, level + 1)

    def left(self) -> list[tuple[int, T]]:
        """What is held, in order, with its level."""
        return [(level, part) for level in reversed(range(len(self.levels))) for part in self.levels[level]]

    def whole(self) -> T | None:
        """All parts as one; None if there were none."""
        left = [part for _, part in self.left()]
        return self.combine(left) if left else None
