"""An estimate on a page of 80 columns."""

from __future__ import annotations

import textwrap

from dbexp.core.errors import byte_size, count
from dbexp.core.progress import duration
from dbexp.estimate.cards import GIB
from dbexp.estimate.estimate import Estimate, Group

_WIDTH = 80
_SURE = (
    "How sure: memory is counted by running this code without numbers, with 1.2 GiB for what CUDA itself takes: expect "
    "it within 15 %. Times are a roofline of the card's data sheet, corrected where this machine has trained the like: "
    "expect others within a factor of 2. The store is taken to be empty; loading and downloading are left out."
)


def page(told: Estimate) -> str:
    """All of it."""
    card = told.card
    memory = f"{card.memory / GIB:.0f} GiB, {card.rate:g} TFLOP/s in 16 bits, {card.bandwidth:g} GB/s"
    lines = [f"{card.title} ({memory})", ""]
    for group in told.groups:
        lines += [*_group(group, card.memory), ""]
    lines.append(f"in all    {duration(told.seconds)}, {count(told.images, 'picture')}, {byte_size(told.disk)} on disk")
    if told.price is not None:
        lines[-1] += f", {told.price:.2f} of money"
    lines += ["", *textwrap.wrap(_SURE, _WIDTH)]
    return "\n".join(lines)


def _group(group: Group, memory: int) -> list[str]:
    runs = count(group.runs, "run")
    lanes = "" if group.trajectories == group.runs else f" in {count(group.trajectories, 'lane')}"
    lines = [f"{group.model}, {group.resolution} px: {runs}{lanes}", "  memory, GiB, of the whole card"]
    training = "  ".join(f"{lanes}: {size / GIB:.1f}" for lanes, size in group.memory.items())
    sampling = "  ".join(f"{batch}: {size / GIB:.1f}" for batch, size in group.sampling.items())
    lines += [f"    training, by lanes       {training}", f"    sampling, by batch       {sampling}"]
    lines.append(f"    metrics                  {group.metrics / GIB:.1f}")
    if group.lanes:
        lines.append(f"  fits: {count(group.lanes, 'lane')} at once" + _drawing(group))
    else:
        lines.append("  does not fit: not even one lane trains" + _drawing(group))
        for words, size in group.remedies.items():
            lines += textwrap.wrap(
                f"with {words}: {size / GIB:.1f} GiB, which {'fits' if _fits(size, memory) else 'does not fit either'}",
                _WIDTH,
                initial_indent="    ",
                subsequent_indent="      ",
                break_long_words=False,
            )
    alone, together = (1000 * value for value in group.step_seconds)
    step = f"  a step: {alone:,.0f} ms alone"
    if group.lanes > 1:
        step += f", {together:,.0f} ms for {group.lanes} lanes ({alone * group.lanes / together:.1f} x as much)"
    if group.waits_for_host:
        step += "; the card waits for Python"
    if group.measurements:
        step += f"; as {count(group.measurements, 'training')} on such a card took"
    lines += textwrap.wrap(step, _WIDTH, subsequent_indent="    ")
    stages = ", ".join(f"{stage} {duration(value)}" for stage, value in group.seconds.items() if value)
    lines += textwrap.wrap(f"  time: {stages}", _WIDTH, subsequent_indent="    ")
    return lines


def _drawing(group: Group) -> str:
    asked = max(group.sampling)
    if not group.batch:
        return "; not even one picture is drawn"
    if group.batch == asked:
        return f"; pictures are drawn {group.batch} at a time"
    return f"; sample.batch_size={asked} does not, {group.batch} does"


def _fits(size: int, memory: int) -> bool:
    from dbexp.estimate.estimate import RESERVED
    from dbexp.train.packing import MEMORY_SHARE

    return size - RESERVED <= MEMORY_SHARE["cuda"] * (memory - RESERVED)
