"""What `tokloss review` says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokloss_ray.text import visible

if TYPE_CHECKING:
    from tokloss_ray.review.estimate import Estimate, Wrong
    from tokloss_ray.review.session import Review

STOP_AT = 0.01
"""Share of wrong labels for which it is said how many more words it takes to rule it out."""


def print_review_summary(console: Console, review: Review, output: str) -> None:
    """What was decided, in this session and in all, how reviewers agree, and the next command."""
    done, here = review.progress(), len(review.standing) - review.before
    console.print()
    console.print(Text(f"decided    {done['decided']:,}  ({here:+,} in this session)"))
    for name, action in (("kept", "keep"), ("accepted", "accept"), ("edited", "edit")):
        console.print(Text(f"  {name:<9}{done[action]:,}"))
    if done["skip"]:
        console.print(Text(f"skipped    {done['skip']:,}"))
    between = review.agreement()
    for pair in between["pairs"]:
        kappa = "" if pair["kappa"] is None else f", Cohen's kappa {pair['kappa']:.2f}"
        names = f"{visible(pair['first'])} and {visible(pair['second'])}"
        console.print(Text(f"{names} gave {pair['same']:,} of {pair['words']:,} words the same tag{kappa}"))
    if between["conflicts"]:
        words = "word has" if between["conflicts"] == 1 else "words have"
        console.print(Text(f"{between['conflicts']:,} {words} different tags from different reviewers"))
    if done["decided"]:
        console.print(Text("Next, write the decisions into the dataset that was scored:"))
        console.print(Text(f"  tokloss apply-fixes {output} --to DATASET -o NEW_DATASET"))


def print_estimate(console: Console, found: Estimate) -> None:
    """How many labels are wrong, how many of them nobody has seen, by tag, and what going on is worth."""
    every = found.all

    def say(text: str) -> None:
        console.print(Text(text))

    unseen, low, high = every.unseen
    say(f"labels           {every.labels:,}")
    say(f"decided          {found.decided:,} words, wrong: {every.found:,}")
    say(f"drawn at random  {found.drawn:,} words not reviewed by rank, wrong: {found.drawn_wrong:,}")
    if found.skipped:
        say(f"                 {found.skipped:,} more were skipped: the estimate takes them for words like the others")
    if found.outdated:
        say(f"                 {found.outdated:,} more do not count: the output has changed since")
    say(f"wrong in all     {_share(every.total, every)} ({every.total:,.0f}), 95 % interval {_interval(every)}")
    say(f"still unseen     {unseen:,.0f}, between {low:,.0f} and {high:,.0f}")
    console.print()
    table = Table(box=None, pad_edge=False)
    for name in ("tag", "labels", "found wrong", "wrong in all", "95 % interval"):
        table.add_column(name, justify="left" if name == "tag" else "right")
    for one in found.tags:
        wrong = f"{_share(one.total, one)} ({one.total:,.0f})"
        table.add_row(Text(visible(one.tag or "")), f"{one.labels:,}", f"{one.found:,}", wrong, _interval(one))
    console.print(table)
    console.print()
    if found.recent:
        say(f"Wrong among the last {found.recent:,} issues by rank: {found.recent_wrong:,}.")
    if high / max(every.labels, 1) > STOP_AT and not found.drawn_wrong:
        more, most = max(round(3 / STOP_AT) - found.drawn, 1), f"{100 * STOP_AT:.0f} %"
        say(f"To rule out that more than {most} of the labels are wrong and unseen, it takes some {more:,}")
        say("further words at random, all of them right; --audit-share 1 shows nothing else.")


def _share(number: float, of: Wrong) -> str:
    share = number / max(of.labels, 1)
    return f"{share:.2%}".replace("%", " %")


def _interval(of: Wrong) -> str:
    return f"{_share(of.low, of)} to {_share(of.high, of)}"
