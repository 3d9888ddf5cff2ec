"""What `tokloss review` says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tokloss_ray.text import visible

if TYPE_CHECKING:
    from tokloss_ray.review.session import Review


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
