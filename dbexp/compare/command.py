"""The command `dbexp-compare`: what one or more sweeps say, rebuilt from their folders; and what the store holds."""

from __future__ import annotations

import argparse
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.config import explain
from dbexp.config.fields import PATH, Bounds
from dbexp.core.errors import ConfigError, Problems, shown
from dbexp.core.folders import obstacle

if TYPE_CHECKING:
    from dbexp.compare.comparison import Comparison

_DESCRIPTION = """\
Rebuild the comparison of one or more sweeps from disk: results.csv, pictures.csv, effects.csv, recommendation.csv,
costs.csv, results.md (ready to paste) and report.html (one page, works offline). They are written into the sweep's
folder; for several sweeps into --output."""
_OBJECTIVE = "what ranks: recommend, dino, dino+clip_t, '0.5*dino+0.5*clip_t'; default: the runs' own"
_SEVERAL = Path("comparison")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 bad input or a damaged store, 2 a mistyped switch, 130 by Ctrl-C."""
    options = _parser().parse_args(arguments)
    with explain.user_errors("dbexp-compare"):
        _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dbexp-compare", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=explain.version())
    parser.add_argument("sweeps", nargs="*", type=Path, metavar="SWEEP", help="folder of a sweep, or of one run")
    parser.add_argument("--objective", metavar="OBJECTIVE", help=_OBJECTIVE)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the files go")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    parser.add_argument("--sync", action="store_true", help="upload to Weights & Biases what it lacks of these sweeps")
    store = parser.add_argument_group("the store of computed results")
    store.add_argument(
        "--store",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FOLDER",
        help="list what it holds; without a folder, the one in the user's cache directory",
    )
    store.add_argument("--prune-older-than", metavar="DAYS", help="delete what was not used for so long")
    store.add_argument("--prune-to-size", metavar="GB", help="delete what was used longest ago until it fits")
    store.add_argument("--verify", action="store_true", help="read all of it, and say what is damaged")
    store.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    return parser


def _run(options: argparse.Namespace) -> None:
    prunes = options.prune_older_than is not None or options.prune_to_size is not None
    problems = Problems()
    problems.require(
        bool(options.sweeps) or options.store is not None,
        "which sweep? give its folder, such as multirun/DATE/TIME; or --store to list what was computed",
    )
    problems.require(
        options.store is not None or not prunes, "--prune-...: say --store too, for that is what is pruned"
    )
    problems.require(
        options.store is not None or not options.verify, "--verify: say --store too, which is what is read"
    )
    problems.require(prunes or not options.dry_run, "--dry-run: give --prune-older-than DAYS or --prune-to-size GB too")
    _check_places(options, problems)
    for name in ("prune_older_than", "prune_to_size"):
        problems.messages += _read_number(options, name)
    problems.raise_if_any()
    if options.store is not None:
        _store(options, prunes)
    if options.sweeps:
        _compare(options)


def _check_places(options: argparse.Namespace, problems: Problems) -> None:
    """Paths that are none, and folders that nothing can be read from or written to."""
    given = [*(("", path) for path in options.sweeps), ("--output=", options.output), ("--store=", options.store)]
    named = [(name, str(path)) for name, path in given if path is not None]
    wrong = [(name, path) for name, path in named if not PATH.allows(path)]
    problems.messages += [f"{name}{shown(path)}: {PATH.demand(path)}" for name, path in wrong]
    if wrong:
        return
    output, store = options.output, options.store
    fault = output and obstacle(output)
    problems.require(not fault, f"--output={output}: {fault}; choose another place with --output FOLDER")
    problems.require(
        store is None or store.is_dir() or not os.path.lexists(store),
        f"--store={store}: is a file; give the folder of a store",
    )


def _read_number(options: argparse.Namespace, name: str) -> list[str]:
    """Make a number of what was typed after a switch, or say what is wrong with it."""
    text, bounds = getattr(options, name), Bounds(at_least=0, most=1e9)
    try:
        value = None if text is None else float(text)
    except ValueError:
        return [f"--{name.replace('_', '-')}={shown(text)}: must be a number"]
    setattr(options, name, value)
    right = value is None or bounds.allows(value)
    return [] if right else [f"--{name.replace('_', '-')}={shown(text)}: {bounds.demand(value)}"]


def _store(options: argparse.Namespace, prunes: bool) -> None:
    from dbexp.core import store_listing
    from dbexp.core.store import Store

    store = Store(None if options.store == Path() else options.store)
    if options.verify:
        store_listing.verify(store)
    if prunes:
        store_listing.prune(
            store,
            older_than_days=options.prune_older_than,
            to_size_gb=options.prune_to_size,
            dry_run=options.dry_run,
        )
    elif not options.verify:
        store_listing.show(store)


def _compare(options: argparse.Namespace) -> None:
    from dbexp.compare import table
    from dbexp.compare.gather import compare
    from dbexp.compare.terminal import show_statements
    from dbexp.compare.write import write_comparison

    folder = options.output or (options.sweeps[0] if len(options.sweeps) == 1 else _SEVERAL)
    try:
        files = write_comparison(options.sweeps, options.objective, folder)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; choose another place with --output FOLDER") from error
    comparison = files.comparison
    names = {entry.run.folder: entry.title for entry in comparison.entries}
    table.show_runs([entry.run for entry in comparison.entries], comparison.objective, names=names)
    show_statements(comparison)
    table.print_plain(
        f"\ntable          {files.csv}\npictures       {files.pictures}\neffects        {files.effects}\n"
        f"recommendation {files.recommendation}\ncosts          {files.costs}\n"
        f"to paste       {files.markdown}\npage           {files.page}\n"
    )
    if options.sync:
        for sweep in options.sweeps:
            _sync(sweep, comparison if len(options.sweeps) == 1 else compare([sweep], options.objective))
    if options.open:
        webbrowser.open(files.page.resolve().as_uri())


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
            [f"{folder}: is not uploaded ({why}); repeat --sync" for folder, why in result.failed.items()]
        )


if __name__ == "__main__":
    main()
