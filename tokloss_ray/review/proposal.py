"""What a decision on an issue is about: the entities around the word, as they are and as suggested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from tokloss_ray.errors import Refused
from tokloss_ray.tags.schemes import TagSet, read_tag_set
from tokloss_ray.tags.sentence_spans import Span, retag, spans_of, tag_set_of

Tags = Sequence[str | None]


class Change(NamedTuple):
    """The words [start, stop) of a row and the tags they should get."""

    start: int
    stop: int
    tags: tuple[str | None, ...]


class Scheme(NamedTuple):
    """How a model's tags are read.

    tag_set: with types for all tags, also for those that mark no spans. spans: whether tags mark spans; otherwise each
    word is decided on by itself.
    """

    tag_set: TagSet
    spans: bool


def scheme_of(tags: tuple[str, ...], name: str | None = None) -> Scheme:
    """The scheme of some tags; name: if they do not tell.

    Raises:
        Refused: they do not belong to it.
    """
    return Scheme(tag_set_of(tags, name), read_tag_set(tags, name) is not None)


def spans_in(tags: Tags, scheme: Scheme) -> list[Span]:
    """The entities of a sentence; where tags mark none, each word that has a tag."""
    if scheme.spans:
        return spans_of(tags, scheme.tag_set)
    return [Span(i, i + 1, tag) for i, tag in enumerate(tags) if tag is not None]


def proposal(labels: Tags, predicted: Tags, word: int, suggested: str, scheme: Scheme) -> Change:
    """What is suggested for a word that is an issue, with the whole of the entities that this changes.

    The suggested tag is the model's own prediction, or, where the model agrees with the label, its second choice: then
    nothing but the word is to change. Annotated and suggested entities that share words are decided on at once, like
    the regions by which words are ranked.
    """
    if not scheme.spans:
        return Change(word, word + 1, (suggested,))
    if predicted[word] == suggested:
        target = [tag if label is not None else None for tag, label in zip(predicted, labels, strict=True)]
    else:
        target = [*labels[:word], suggested, *labels[word + 1 :]]
    ours, theirs = spans_in(labels, scheme), spans_in(target, scheme)
    start, stop = region(word, [*ours, *theirs])
    inside = [span for span in theirs if start <= span.start < stop]
    outside = [span for span in ours if not start <= span.start < stop]
    return changed(labels, [*inside, *outside], scheme, start, stop)


def region(word: int, spans: Iterable[Span]) -> tuple[int, int]:
    """[start, stop) of the spans that share words with each other, and one of them with `word`."""
    start, stop = word, word + 1
    spans = list(spans)
    grown = True
    while grown:
        touching = [span for span in spans if span.start < stop and start < span.end]
        new = min([start, *(s.start for s in touching)]), max([stop, *(s.end for s in touching)])
        grown, (start, stop) = new != (start, stop), new
    return start, stop


def changed(labels: Tags, spans: Sequence[Span], scheme: Scheme, start: int, stop: int) -> Change:
    """The tags after all entities of a sentence have become `spans`: of the words [start, stop), and of words beside
    them whose tags change too.

    Raises:
        Refused: spans overlap, lie outside the sentence, or have a type that the model does not know.
    """
    ordered = sorted(spans)
    types = scheme.tag_set.types
    if any(not 0 <= s.start < s.end <= len(labels) or s.type not in types for s in ordered):
        raise Refused("an entity lies outside the sentence, or its type is not one of the model's")
    if any(a.end > b.start for a, b in pairwise(ordered)):
        raise Refused("two entities share a word: a word can have only one tag")
    if scheme.spans:
        tags = retag(labels, ordered, scheme.tag_set)
    else:
        tags = list(labels)  # each word keeps a tag: there is none that says "no entity"
        for span in ordered:
            tags[span.start : span.end] = [span.type] * (span.end - span.start)
    other = [i for i, (old, new) in enumerate(zip(labels, tags, strict=True)) if old != new]
    start, stop = min([start, *other]), max([stop, *(i + 1 for i in other)])
    return Change(start, stop, tuple(tags[start:stop]))
