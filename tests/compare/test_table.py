"""The printed table, as text and on terminals."""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import pytest
from rich.console import Console

from dbexp.compare import table
from dbexp.evaluate.columns import COLUMNS, PAPER, heading
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report
from dbexp.runs.record import Run
from tests.compare.sweeps import unwritten

RUN = {
    "dino": Estimate(0.668, 0.650, 0.690, 25),
    "clip_i": Estimate(0.803, 0.790, 0.810, 25),
    "clip_t": Estimate(0.305, 0.300, 0.310, 25),
    "pres": Estimate(0.493, 0.480, 0.500, 100),
    "div": Estimate(0.371, 0.360, 0.380, 25),
    "clip_t_token": Estimate(0.311, 0.300, 0.320, 25),
    "pres_base": Estimate(0.401, 0.390, 0.410, 100),
    "pres_delta": Estimate(0.092, 0.080, 0.100, 100),
    "div_prior": Estimate(0.391, 0.380, 0.400, 100),
    "dino_real": Estimate(0.774, 0.700, 0.800, 5),
    "clip_i_real": Estimate(0.885, 0.800, 0.900, 5),
    "dino_max": Estimate(0.712, 0.690, 0.730, 25),
    "copy_rate": Estimate(0.040, 0.000, 0.080, 25),
    "n_missing": Estimate(0.0, n=100),
    "n_blank": Estimate(2.0, n=100),
}
BASE = {"dino": Estimate(0.301, 0.290, 0.310, 25), "pres": RUN["pres_base"]}
REAL = {"dino": RUN["dino_real"], "clip_i": RUN["clip_i_real"]}


def report(label: str | None = None, base: dict[str, Estimate] | None = None, **columns: Estimate) -> Report:
    rows = {"run": RUN | columns, "base": BASE if base is None else base, "real": REAL}
    rows = {name: row for name, row in rows.items() if row}
    return Report(label, "sks", "dog", {}, {}, rows, {}, (), (), (), math.nan)


def lines(*reports: tuple[str, Report]) -> list[str]:
    return table.text(reports).splitlines()


def line(starts: str, of: list[str]) -> str:
    """The first line that begins with these words."""
    return next(candidate for candidate in of if candidate.startswith(starts))


def on_terminal(width: int, *reports: tuple[str, Report], color: bool = False) -> str:
    buffer = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if color else None
    console = Console(file=buffer, force_terminal=True, width=width, color_system=system, legacy_windows=False)
    table.show(reports, console)
    return buffer.getvalue()


def test_every_column_has_a_title_of_its_own() -> None:
    assert len({column.title for column in COLUMNS.values()}) == len(COLUMNS)
    assert set(PAPER) < set(COLUMNS)


def test_arrows_point_to_the_better_side() -> None:
    assert heading("dino") == "DINO ↑"
    assert heading("pres") == "PRES ↓"
    assert heading("dino_real") == "DINO real"


def test_the_papers_columns_come_first_and_in_order() -> None:
    header = line(" ", lines(("dog3", report())))
    assert header.split() == ["DINO", "↑", "CLIP-I", "↑", "CLIP-T", "↑", "PRES", "↓", "DIV", "↑"]


def test_a_run_stands_with_its_intervals_above_what_it_is_measured_against() -> None:
    output = lines(("dog3", report()))
    assert line("dog3 ", output).split()[1:5] == ["0.668", "0.650…0.690", "0.803", "0.790…0.810"]
    first = [row.split("  ")[0] for row in output[3:6]]
    assert first == ["dog3", "base model", "real images"]
    assert "0.301 0.290…0.310" in line("base model", output)
    assert "0.774 0.700…0.800" in line("real images", output)


def test_the_other_columns_follow_and_counts_are_whole() -> None:
    output = lines(("dog3", report()))
    header = next(i for i, row in enumerate(output) if "CLIP-T token ↑" in row)
    assert [word for word in output[header].strip().split("  ") if word] == [
        "CLIP-T token ↑",
        "PRES delta ↓",
        "DIV prior ↑",
        "DINO max ↑",
        "copy rate ↓",
        "missing ↓",
        "blank ↓",
    ]
    assert output[header + 1].split() == ["dog3", "0.311", "0.092", "0.391", "0.712", "0.040", "0", "2"]


def test_values_stand_under_their_heading() -> None:
    output = lines(("dog3", report()))
    header = line(" ", output)
    for title, row, value in (("PRES", "dog3 ", "0.493"), ("PRES", "base ", "0.401"), ("CLIP-I", "real ", "0.885")):
        assert line(row, output).startswith(value, header.index(title)), (title, row)


def test_no_base_row_without_base_samples() -> None:
    output = lines(("dog3", report(base={})))
    assert not any(row.startswith("base model") for row in output)


def test_the_label_stands_in_the_title() -> None:
    assert lines(("dog3", report("random weights: numbers mean nothing")))[0] == (
        "dog3  (random weights: numbers mean nothing)"
    )
    assert lines(("dog3", report()))[0] == "dog3"


def test_a_dash_for_nan_and_the_reason_once_below() -> None:
    missing = Estimate.missing("no class images")
    output = lines(("dog3", report(pres=missing, pres_delta=missing, div_prior=missing)))
    header = line(" ", output)
    assert line("dog3 ", output)[header.index("PRES")] == "–"
    assert [row for row in output if row.startswith("–")] == ["– PRES, PRES delta, DIV prior: no class images (dog3)"]
    assert not any("nan" in row.lower() for row in output)


def test_reasons_of_many_runs_stay_short() -> None:
    runs = [(f"seed={seed}", report(div=Estimate.missing("no prompt has two samples"))) for seed in range(9)]
    assert lines(*runs)[-1] == "– DIV: no prompt has two samples (seed=0, seed=1, seed=2 and 6 more)"


def test_runs_share_the_rows_of_what_they_share() -> None:
    output = lines(("rank=16", report()), ("rank=32", report(dino=Estimate(0.7, 0.6, 0.8))))
    assert output[0] == "2 runs"
    assert sum(row.startswith("base model") for row in output[:8]) == 1
    assert sum(row.startswith("real images") for row in output) == 1


def test_runs_with_different_base_models_name_theirs() -> None:
    other = {"dino": Estimate(math.nan, reason="no samples")}
    output = lines(("model=a", report()), ("model=b", report(base=other)), ("model=c", report(base=other)))
    assert line("base model of model=a", output)
    assert line("base model of model=b and model=c", output)
    assert sum(row.startswith("real images") for row in output) == 1


def test_runs_with_different_base_models_name_them_by_what_they_have_in_common() -> None:
    other = {"dino": Estimate(0.1, 0.0, 0.2)}
    runs = [
        (f"rank={rank} seed={seed}", report(base=other if seed == 2 else None)) for rank in (4, 8) for seed in (1, 2)
    ]
    output = lines(*runs)
    assert line("base model of seed=1 ", output)
    assert line("base model of seed=2 ", output)


def test_labels_that_differ_go_to_their_runs() -> None:
    output = lines(("model=a", report("storybook")), ("model=b", report()), ("model=c", report("random weights")))
    assert output[0] == "3 runs  (storybook; random weights)"
    assert line("model=a (storybook) ", output)
    assert line("model=b  ", output)


def test_the_best_run_of_each_column_is_bold() -> None:
    a = report(dino=Estimate(0.7), pres=Estimate(0.5), clip_t=Estimate(0.3), div=Estimate(math.nan, reason="none"))
    b = report(dino=Estimate(0.6), pres=Estimate(0.4), clip_t=Estimate(0.3), div=Estimate(0.2))
    output = on_terminal(100, ("a", a), ("b", b), color=True)
    assert "\x1b[1m0.700\x1b[0m" in output  # higher is better
    assert "\x1b[1m0.400\x1b[0m" in output  # lower is better
    assert "\x1b[1m0.600" not in output
    assert "\x1b[1m0.500" not in output
    assert "\x1b[1m0.300" not in output  # a tie


def test_it_fits_80_characters() -> None:
    output = on_terminal(80, ("rank=16 weight=0", report()), ("rank=32 weight=1", report()))
    assert max(map(len, output.splitlines())) <= 80
    words = output.split()
    for whole in ("0.650…0.690", "0.360…0.380", "0.480…0.500", "0.712"):
        assert whole in words, whole


def test_a_value_too_long_for_80_characters_is_folded_not_cut() -> None:
    """Negative intervals need two signs more."""
    below = {column: Estimate(-0.123, -0.234, -0.112) for column in PAPER}
    output = on_terminal(80, ("a long name of a run", report(None, {}, **below)))
    assert max(map(len, output.splitlines())) <= 80
    assert sum(character.isdigit() for character in output) == sum(
        character.isdigit() for character in on_terminal(200, ("a long name of a run", report(None, {}, **below)))
    )


def test_a_terminal_too_narrow_for_columns_gets_whole_lines() -> None:
    assert on_terminal(40, ("dog3", report())) == table.text([("dog3", report())])


def test_numbers_have_a_true_minus_and_zero_has_none() -> None:
    below = report(dino=Estimate(-0.123, -0.2, -0.0001), clip_i=Estimate(-0.0002))
    assert line("dog3 ", lines(("dog3", below))).split()[1:4] == ["−0.123", "−0.200…0.000", "0.000"]


def test_names_are_not_markup() -> None:
    assert lines(("crop=[red]x[/red]", report()))[0] == "crop=[red]x[/red]"


@pytest.mark.parametrize(("encoding", "arrow"), [("utf-8", "↑"), ("cp1252", "^"), ("ascii", "^")])
def test_a_file_gets_plain_text_in_its_own_encoding(encoding: str, arrow: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=stream, force_terminal=False)
    table.show([("dog3", report(dino=Estimate(-0.5)))], console)
    table.print_plain("rank 4 → 8: −0.5 (in 狗)\n", console)
    stream.flush()
    output = raw.getvalue().decode(encoding)
    assert f"DINO {arrow}" in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) > 80


def of_runs(runs: list[Run], **console: Any) -> str:
    buffer = io.StringIO()
    table.show_runs(runs, "dino", Console(file=buffer, **console))
    return buffer.getvalue()


def test_the_table_ends_with_means_over_seeds() -> None:
    runs = [
        unwritten(0, "lora.rank=2", "seed=1", dino=0.5),
        unwritten(1, "lora.rank=2", "seed=2", dino=0.7),
        unwritten(2, "lora.rank=4", "seed=1", dino=0.9),
    ]
    above, below = of_runs(runs).split("mean ± standard deviation over seeds")
    assert above.index("2: rank=4 seed=1") < above.index("1: rank=2 seed=2") < above.index("0: rank=2 seed=1")
    means = [row.split() for row in below.splitlines() if row.startswith("rank")]
    assert means[0][:3] == ["rank=4", "1", "0.900"] and "±" not in means[0]
    assert means[1][:5] == ["rank=2", "2", "0.600", "±", "0.141"]
    assert "rank=2" in of_runs(runs, force_terminal=True, width=100)


def test_without_seeds_there_are_no_means() -> None:
    assert "±" not in of_runs([unwritten(0, "lora.rank=2", dino=0.5), unwritten(1, "lora.rank=4", dino=0.6)])
    assert of_runs([unwritten(0, error="it failed")]) == ""


def test_a_line() -> None:
    assert table.line(unwritten(0, dino=0.5, clip_i=0.25, pres=math.nan)) == "DINO 0.500  CLIP-I 0.250  PRES –"
    assert table.line(unwritten(0, error="it failed\nfor a reason")) == "failed: it failed"
