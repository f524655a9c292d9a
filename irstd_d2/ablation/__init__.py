"""The ablation tables of both papers as data, and what trains, compares and reports them (``tools/ablate.py``)."""

from .auxdet_tables import AUXDET_TABLES
from .bafe_tables import BAFE_TABLES
from .beyond_tables import BEYOND_TABLES
from .compare import judge, sign_agreement
from .report import collect, draw, markdown
from .runner import Job, NotFinishedError, Outcome, finished, make_job, run_jobs
from .scales import SCALES, get_scale, resolve
from .tables import Claim, Metric, Recipe, Row, Table, select_rows

TABLES = {table.name: table for table in (*AUXDET_TABLES, *BAFE_TABLES, *BEYOND_TABLES)}

__all__ = [
    "SCALES",
    "TABLES",
    "Claim",
    "Job",
    "Metric",
    "NotFinishedError",
    "Outcome",
    "Recipe",
    "Row",
    "Table",
    "collect",
    "draw",
    "finished",
    "get_scale",
    "judge",
    "make_job",
    "markdown",
    "resolve",
    "run_jobs",
    "select_rows",
    "sign_agreement",
]
