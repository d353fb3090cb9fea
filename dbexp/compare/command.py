"""The command `dbexp-compare`: what one or more sweeps say, rebuilt from their folders; and what the store holds."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.compare.settings import DEFAULT, USAGE, CompareConfig, check, without_switches
from dbexp.config import explain, words
from dbexp.core import disk, limits
from dbexp.core.errors import ConfigError

if TYPE_CHECKING:
    from dbexp.compare.comparison import Comparison

_SEVERAL = Path("comparison")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 bad input or a damaged store, 130 by Ctrl-C, 143 by SIGTERM."""
    with explain.user_errors("dbexp-compare", "every file that was written is whole; the same command does the rest"):
        typed = without_switches(sys.argv[1:] if arguments is None else arguments)
        settings = words.parse(CompareConfig, typed, USAGE, nameless="sweep")
        check(settings)
        if settings.store is not None:
            _store(settings)
        if settings.sweep:
            limits.rehearse(lambda: _gather(settings))
            _compare(settings)


def _store(settings: CompareConfig) -> None:
    from dbexp.core import store_listing
    from dbexp.core.store import Store

    store = Store(None if settings.store in (None, DEFAULT) else Path(settings.store))
    if settings.verify:
        store_listing.verify(store)
    if settings.prunes:
        store_listing.prune(
            store,
            older_than_days=settings.prune_older_than,
            to_size_gb=settings.prune_to_size,
            dry_run=settings.dry_run,
        )
    elif not settings.verify:
        store_listing.show(store)


def _compare(settings: CompareConfig) -> None:
    from dbexp.compare import table
    from dbexp.compare.gather import compare
    from dbexp.compare.terminal import show_statements
    from dbexp.compare.write import write_comparison

    sweeps = settings.sweeps
    folder = Path(settings.output) if settings.output else sweeps[0] if len(sweeps) == 1 else _SEVERAL
    try:
        files = write_comparison(sweeps, settings.objective, folder)
    except OSError as error:
        raise ConfigError(disk.message(error, {"output=FOLDER": folder})) from error
    comparison = files.comparison
    names = {entry.run.folder: entry.title for entry in comparison.entries}
    called = {e.run.folder: standing.title for standing in comparison.standings for e in standing.entries}
    runs = [entry.run for entry in comparison.entries]
    table.show_runs(runs, comparison.objective, names=names, settings=called)
    show_statements(comparison)
    table.print_plain(
        f"\ntable          {files.csv}\npictures       {files.pictures}\neffects        {files.effects}\n"
        f"recommendation {files.recommendation}\ncosts          {files.costs}\n"
        f"to paste       {files.markdown}\npage           {files.page}\n"
    )
    if settings.sync:
        for sweep in sweeps:
            _sync(sweep, comparison if len(sweeps) == 1 else compare([sweep], settings.objective))
    if settings.open:
        webbrowser.open(files.page.resolve().as_uri())


def _gather(settings: CompareConfig) -> Comparison:
    """Read the sweeps, with every library loaded that shows them."""
    from dbexp.compare.gather import compare
    from dbexp.compare.page import page  # noqa: F401  # plotly

    return compare(settings.sweeps, settings.objective)


def _sync(sweep: Path, comparison: Comparison) -> None:
    """Upload a sweep and the summary of it, and say what became of them.

    Raises:
        ConfigError: nothing can be uploaded, or a run could not.
    """
    from dbexp import tracking
    from dbexp.compare.summary import summarise

    summarise(comparison)
    result = tracking.sync(sweep)
    for folder, address in result.uploaded.items():
        print(f"uploaded       {folder}  {address}", flush=True)
    total = len(result.present) + len(result.uploaded) + len(result.failed)
    print(f"in W&B already {len(result.present)} of {total} runs")
    if result.failed:
        raise ConfigError(
            [f"{folder}: is not uploaded ({why}); repeat sync=true" for folder, why in result.failed.items()]
        )


if __name__ == "__main__":
    main()
