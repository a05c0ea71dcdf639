"""llm_log_prune: the log thinned out by age."""

from ...errors import InvalidParameter, require, require_positive
from .. import db
from ..entry import entry
from ..storage import store


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
        " AND ($1 IS NULL OR l.model = $1) AND l.at < clock_timestamp() - $2::interval"
        " AND ($3 IS NULL OR l.step % $3 <> 0) AND l.val_loss IS NULL AND l.weights_digest IS NULL"
        " AND NOT EXISTS ("
        "  SELECT FROM {schema}.llm_run AS r WHERE r.run_id = l.run_id AND r.status IN ('running', 'stopped'))",
        ["text", "text", "int8"],
        *(model, older_than, keep_every),
    )
