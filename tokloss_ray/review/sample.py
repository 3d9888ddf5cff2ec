"""One reviewer's random sample while it grows: when a word of it is due, which one, and what it says so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.sentences import Sentence
from tokloss_ray.output.decisions import Decision, Row
from tokloss_ray.review.audit import Draw, Key, Population, Reading, seed_of
from tokloss_ray.review.estimate import Estimate, estimated, keys_of

ByWord = Mapping[Row, Mapping[int, Decision]]


class Sample:
    """The words that are drawn at random in a review, a share of all issues.

    Attributes:
        population: the corpus, once the pass over it is over.
        share: of issues shown; 0 for none.

    Raises:
        Refused: it is no share.
    """

    def __init__(self, share: float, tags: tuple[str, ...], reviewer: str, left: Sequence[Decision]) -> None:
        if not 0 <= share <= 1:
            raise Refused(f"--audit-share {share}: choose a number from 0 to 1")
        self.share = share
        asked = (key for decision in left for key in keys_of(decision))
        self.population = Population(tags, seed_of(reviewer), asked)
        self.reading = Reading()
        self._estimate: tuple[int, Estimate | None] = (-1, None)
        self.settle(left)

    def settle(self, left: Sequence[Decision]) -> None:
        """What the standing decisions come to."""
        self.batches = {d.batch for d in left}
        self.audits = {d.batch: d for d in left if d.stratum is not None}
        self._passed = {batch for d in left for batch in d.passes}
        self._estimate = (-1, None)

    def add(self, new: Sequence[Decision]) -> None:
        """One batch more."""
        self.batches |= {d.batch for d in new}
        self.audits |= {d.batch: d for d in new if d.stratum is not None}
        self._passed |= {batch for d in new for batch in d.passes}

    def know(self, sentence: Sentence, decision: Decision) -> None:
        """Note the words of a decision; nothing before the pass is over, which finds those that were written."""
        here = slice(decision.start, decision.stop)
        self.population.know(keys_of(decision), sentence.losses[here], sentence.labels[here])

    def due(self, is_decided: Callable[[Key], bool]) -> Draw | None:
        """The drawn word that is to be shown next, before any other issue; None if it is not time."""
        if not self.population.ready or len(self.audits) + 1 > self.share * (len(self.batches) + 1):
            return None
        taken = Counter(d.stratum for d in self.audits.values() if d.stratum is not None)
        return self.population.next(taken, is_decided)

    def passed_by(self, key: Key, words: ByWord) -> tuple[int, ...]:
        """The batches with drawn words that the ranked issues have come to before a word, the first time."""
        found = {
            decision.batch
            for source, row, word in self.reading.before(key)
            if (decision := words.get((source, row), {}).get(word)) is not None
        }
        return tuple(sorted(found & self.audits.keys() - self._passed))

    def so_far(self, reviewer: str, own: Sequence[Decision]) -> Estimate | None:
        """The estimate from this reviewer's decisions; made again when a drawn word has been decided on."""
        if not self.population.ready or not self.audits:
            return None
        if self._estimate[0] != len(self.audits):
            self._estimate = len(self.audits), estimated({reviewer: own}, self.population)
        return self._estimate[1]
