"""Weights & Biases: the dashboard of a run. Every number and picture is on disk first, so nothing here may cost a run.

One W&B run per run, offline unless told otherwise, and one that sums a sweep up. What the W&B run of a run has:

| name | what |
|---|---|
| config | every parameter, by Hydra's dotted name |
| train/* | loss, learning rates and so on, against train/step |
| metrics/*, base/*, real/* | the columns of the table, of the run and of what it is measured against |
| cost/* | seconds, memory and sizes; a lane's share of its pack ends in `_share` |
| tables/metrics | the table with its intervals |
| tables/prompts | prompt by prompt: the base model's picture, the run's pictures, the columns |
| pictures/contact_sheet | the contact sheet |
| an artifact of type lora | the LoRA file |

And the sweep's (job type `sweep`):

| name | what |
|---|---|
| tables/comparison | a row per run, best first: what differs, every column with its interval; then the references |
| tables/costs | what each setting cost |
| charts/pareto | subject fidelity against prompt fidelity |
| pictures/contact_sheets | those of the runs, best first |
| best/*, jobs/* | the columns of the best run; how many finished and failed |
| an artifact of type lora | the recommended run's, which has the alias `best` from it |
| recommendation/* | in the summary: the setting to take, its score and shares, who cannot be told from it, the rule |

metrics/* are defined with their direction: W&B keeps the maximum of what should be high, the minimum of what should be
low. `workspace` makes the view that sorts by them.

Modules: `records` is the disk, `session` opens W&B runs, `content` makes tables and pictures, `writer` writes to a run;
`tracker`, `upload` and `summary` use them while a run goes on, later, and for a sweep.
"""

from dbexp.tracking.session import problems
from dbexp.tracking.summary import Summary, summarise
from dbexp.tracking.tracker import Disabled, Tracker, start
from dbexp.tracking.upload import Synced, sync

__all__ = [
    "Disabled",
    "Summary",
    "Synced",
    "Tracker",
    "problems",
    "start",
    "summarise",
    "sync",
]
