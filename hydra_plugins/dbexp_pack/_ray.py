"""`executor=ray`: a task per pack."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Sequence

import ray

from dbexp.core.errors import Interrupted, first_line
from hydra_plugins.dbexp_pack import _work
from hydra_plugins.dbexp_pack._settings import RayConf, without_nulls
from hydra_plugins.dbexp_pack._work import PackWork, Returned

log = logging.getLogger(__name__)


def run(conf: RayConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    """Give all packs to Ray, and tell of their jobs as packs come back.

    Raises:
        Interrupted: Ctrl-C; the tasks were cancelled.
    """
    starts = not ray.is_initialized()
    if starts:
        ray.init(**without_nulls(conf.init))
    # a task whose worker dies is tried once more; one that fails by an exception of its own is too
    options = {"max_retries": 1, "retry_exceptions": True, **without_nulls(conf.remote)}
    task = ray.remote(**options)(_work.run_elsewhere)
    pending = {task.remote(work): work for work in works}
    try:
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            work = pending.pop(reference)
            try:
                returns = ray.get(reference)
            except ray.exceptions.RayError as error:
                log.warning("%s was lost, twice: %s", work.name, error)
                returns = _work.recover(work, f"{work.name} was lost: {first_line(error)}")
            yield from returns
    except BaseException as error:  # also when whoever takes the returns was interrupted
        for reference in pending:
            ray.cancel(reference)
        if not isinstance(error, KeyboardInterrupt):
            raise
        message = f"{len(pending)} tasks were cancelled; the same command goes on where they stopped"
        raise Interrupted(signal.SIGINT, message) from None
    finally:
        if starts:
            ray.shutdown()
