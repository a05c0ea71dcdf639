"""llm_sparkline, llm_run_sparkline: curves in psql."""

from ...errors import UndefinedObject, require, require_positive
from ...sparkline import means, sparkline
from .. import db
from ..arrays import received
from ..entry import entry


@entry
@received(numbers="double precision")
def of_numbers(numbers: list[float | None] | None, width: int) -> str | None:
    """Numbers as at most `width` bars; null for null."""
    require_positive(width=width)
    return None if numbers is None else sparkline(means(numbers, width))


@entry
def of_run(run_id: int, width: int) -> str:
    """The losses of a run; the server averages them, so that a long log stays there."""
    require(run_id=run_id)
    require_positive(width=width)
    rows = db.query(
        "SELECT avg(loss) FILTER (WHERE abs(loss) < 'Infinity') AS loss FROM ("
        " SELECT loss, ((row_number() OVER (ORDER BY step) - 1) * least($2, count(*) OVER ())) / count(*) OVER () AS place"
        " FROM {schema}.llm_train_log WHERE run_id = $1"
        ") AS step GROUP BY place ORDER BY place",
        ["int8", "int8"],
        *(run_id, width),
    )
    if not rows and db.row("SELECT FROM {schema}.llm_run WHERE run_id = $1", ["int8"], run_id) is None:
        raise UndefinedObject(
            f"run {run_id} does not exist", hint="SELECT run_id FROM llm_train_progress lists the runs."
        )
    return sparkline([row["loss"] for row in rows])
