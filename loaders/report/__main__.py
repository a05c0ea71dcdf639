"""Write a training run as one HTML file: curves, samples of the model, configuration, environment, checkpoints.

The file loads nothing from elsewhere. While a run goes on, it shows the steps committed so far.
"""

from pathlib import Path

import psycopg

from ..common import Database, LoaderError, arguments, connect, output, run
from .data import Sampling, read
from .page import render


def last_run(database: Database) -> int:
    """The run that began last, if there is one of those of llm_train with a curve to show; LoaderError when there is none."""
    row = database.execute(
        "SELECT run_id FROM {llm_run} AS r ORDER BY"
        " r.status <> 'manual' AND (SELECT count(*) > 1 FROM {llm_train_log} AS l WHERE l.run_id = r.run_id) DESC,"
        " r.status <> 'manual' DESC, run_id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        raise LoaderError("this database has no training run yet; SELECT llm_train('model', n_steps) makes one")
    return row[0]


def main() -> None:
    """Parse the command line and write the report."""
    parser = arguments(__doc__)
    parser.add_argument("--run", type=int, metavar="N", help="its run_id; default: the last one of two steps or more")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument("--prompt", action="append", default=[], help="what a sample continues; may be repeated")
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens, help="length of a sample")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature)
    parser.add_argument("--seed", type=int, default=Sampling.seed)
    args = parser.parse_args()
    with connect(args.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        database = Database(conn)
        run_id = last_run(database) if args.run is None else args.run
        report = read(database, run_id, Sampling(args.prompt, args.max_tokens, args.temperature, args.seed))
    with output(args.output) as path:
        path.write_text(render(report), encoding="utf-8")
    print(f'wrote run {run_id} of model "{report.run.model}" to {args.output}')


if __name__ == "__main__":
    run(main)
