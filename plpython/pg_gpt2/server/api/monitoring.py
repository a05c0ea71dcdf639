"""llm_sparkline, llm_run_sparkline: curves in psql; llm_log_prune: the log thinned out by age."""

from ...errors import InvalidParameter, UndefinedObject, require, require_positive
from ...sparkline import means, sparkline
from .. import db
from ..arrays import received
from ..entry import entry
from ..storage import store

OLDEST = "6000 years"  # a timestamp reaches back to 4713 BC, and no row is older than this


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
        raise UndefinedObject(f"run {run_id} does not exist", hint="SELECT run_id, model FROM llm_run lists the runs.")
    return sparkline([row["loss"] for row in rows])


@entry
def prune_log(model: str | None, older_than: str, keep_every: int | None) -> int:
    """Remove rows of llm_train_log; how many."""
    require(older_than=older_than)
    if keep_every is not None:
        require_positive(keep_every=keep_every)
    if (db.row("SELECT $1::interval < interval '0' AS future", ["text"], older_than) or {})["future"]:
        raise InvalidParameter(f"older_than must not be negative: {older_than}", hint="interval '0' prunes all ages.")
    if model is not None:
        store.config(model)
    return db.run(
        "DELETE FROM {schema}.llm_train_log AS l USING ("
        " SELECT run_id, min(step) AS first, max(step) AS last FROM {schema}.llm_train_log GROUP BY run_id"
        ") AS ends"
        " WHERE ends.run_id = l.run_id AND l.step NOT IN (ends.first, ends.last)"
        " AND ($1 IS NULL OR l.model = $1) AND l.at < clock_timestamp() - least($2::interval, $4::interval)"
        " AND ($3 IS NULL OR l.step % $3 <> 0) AND l.val_loss IS NULL AND l.weights_digest IS NULL"
        " AND NOT EXISTS ("
        "  SELECT FROM {schema}.llm_run AS r WHERE r.run_id = l.run_id AND r.status IN ('running', 'stopped'))",
        ["text", "text", "int8", "text"],
        *(model, older_than, keep_every, OLDEST),
    )
