"""What a report shows, read from the tables of a database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from psycopg import errors
from psycopg.rows import class_row

from ..common import Database, LoaderError

POINTS = 600  # of a curve; of a longer run each is the mean of neighbouring steps
PROMPTS = 3  # taken from the data when none are given
PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Run:
    """A row of llm_run, with sums over its steps."""

    run_id: int
    model: str
    config: dict[str, Any]
    seed: int
    status: str
    first_step: int
    n_steps: int | None
    weights_digest: str | None
    environment: dict[str, Any]
    started_at: datetime
    finished_at: datetime | None
    steps: int
    last_step: int | None
    left_step: int | None  # whose weights it left
    tokens: int
    seconds: float
    last_digest: str | None


@dataclass(frozen=True)
class Point:
    """Means over the steps `first_step` to `step`; None where no value was finite."""

    first_step: int
    step: int
    loss: float | None
    low: float | None
    high: float | None
    lr: float
    grad_norm: float | None
    speed: float | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the model; `run_id` is the run that the model had last been through."""

    id: int
    step: int
    run_id: int | None
    created_at: datetime
    note: str
    bytes: int
    file_path: str | None


@dataclass(frozen=True)
class Model:
    """The model as it is now; n_params is 0 for one that has no weights."""

    n_layer: int
    n_head: int
    d_model: int
    n_positions: int
    vocab: int
    n_params: int
    step: int | None
    has_vocabulary: bool


@dataclass(frozen=True)
class Sample:
    """What the model wrote after `prompt`; `original` is how the data go on, where the prompt comes from them."""

    prompt: str
    continuation: str
    original: str | None


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn."""

    prompts: Sequence[str] = ()
    max_tokens: int = 80
    temperature: float = 0.8
    seed: int = 1


@dataclass(frozen=True)
class Report:
    """Everything that a report shows."""

    run: Run
    model: Model
    points: list[Point]
    validation: list[tuple[int, float]]
    checkpoints: list[Checkpoint]
    samples: list[Sample]
    refused: str | None  # why the server drew no samples, as for weights that are no numbers
    sampling: Sampling
    written_at: datetime

    @property
    def duration(self) -> timedelta:
        """The time that the steps took."""
        return timedelta(seconds=self.run.seconds)


RUN = """
    SELECT r.run_id, r.model, r.config, r.seed, coalesce(p.status, r.status) AS status, r.first_step, r.n_steps, r.weights_digest,
        r.environment, r.started_at, r.finished_at, l.*
    FROM {llm_run} AS r
    LEFT JOIN {llm_train_progress} AS p USING (run_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS steps, max(t.step) AS last_step, max(coalesce(best.step, t.step)) AS left_step,
            coalesce(sum(tokens), 0) AS tokens, coalesce(sum(seconds), 0) AS seconds,
            (array_agg(t.weights_digest ORDER BY t.step DESC) FILTER (
                WHERE t.weights_digest IS NOT NULL AND t.step <= coalesce(best.step, t.step)
            ))[1] AS last_digest
        FROM {llm_train_log} AS t
        LEFT JOIN (
            SELECT v.step FROM {llm_train_log} AS v WHERE v.run_id = r.run_id AND v.val_loss < 'Infinity'
                AND r.status IN ('finished', 'early') AND r.config ->> 'keep_best' = 'true'
            ORDER BY v.val_loss, v.step LIMIT 1
        ) AS best ON true
        WHERE t.run_id = r.run_id
    ) AS l
    WHERE r.run_id = %s
"""
CURVES = """
    SELECT min(step) AS first_step, max(step) AS step, avg(lr) AS lr, sum(tokens) / nullif(sum(seconds), 0) AS speed,
        avg(loss) FILTER (WHERE abs(loss) < 'Infinity') AS loss, min(loss) FILTER (WHERE abs(loss) < 'Infinity') AS low,
        max(loss) FILTER (WHERE abs(loss) < 'Infinity') AS high, avg(grad_norm) FILTER (WHERE grad_norm < 'Infinity') AS grad_norm
    FROM (
        SELECT *, (row_number() OVER (ORDER BY step) - 1) * least(%s, count(*) OVER ()) / count(*) OVER () AS place
        FROM {llm_train_log} WHERE run_id = %s
    ) AS l
    GROUP BY place ORDER BY place
"""
VALIDATION = """
    SELECT step, val_loss FROM {llm_train_log} WHERE run_id = %s AND abs(val_loss) < 'Infinity' ORDER BY step
"""
CHECKPOINTS = """
    SELECT id, step, run_id, created_at, note, bytes, file_path FROM {llm_checkpoint_list}(%s) ORDER BY id
"""
MODEL = """
    SELECT n_layer, n_head, d_model, n_positions, vocab, n_params, step, tokenizer_tokens > 0 AS has_vocabulary
    FROM {llm_models} WHERE model = %s
"""
PROMPT_ROWS = """
    SELECT tokens, ARRAY(SELECT {llm_decode}(ARRAY[id], %s) FROM unnest(tokens) WITH ORDINALITY AS t (id, place) ORDER BY place),
        ARRAY(SELECT id = ANY (e.ids) FROM unnest(tokens) WITH ORDINALITY AS t (id, place) ORDER BY place)
    FROM (
        SELECT tokens, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS n
        FROM {llm_dataset} WHERE (model = %s OR model IS NULL) AND split = %s AND cardinality(tokens) > %s
    ) AS row
    CROSS JOIN (
        SELECT ARRAY(
            SELECT c.eos_token_id FROM {llm_model_config} AS c WHERE c.model = %s
            UNION SELECT token_id FROM {llm_bpe_vocab} WHERE ('eos' = ANY (roles) OR token = '<|endoftext|>')
                AND model = coalesce((SELECT base FROM {llm_adapter} WHERE model = %s), %s)
        )
    ) AS e (ids)
    WHERE (place - 1) * %s / n > (place - 2) * %s / n OR place = 1
    ORDER BY place
"""


def read(database: Database, run_id: int, sampling: Sampling) -> Report:
    """The report of a run, in a REPEATABLE READ transaction all from one snapshot; LoaderError for an unknown run or model."""
    runs = _rows(database, Run, RUN, run_id)
    if not runs:
        raise LoaderError(f"run {run_id} does not exist; SELECT run_id, model FROM llm_run lists the runs")
    models = _rows(database, Model, MODEL, runs[0].model)
    if not models:
        raise LoaderError(
            f'run {run_id} is of model "{runs[0].model}", which llm_models does not have: it was deleted, or is hidden from you'
        )
    (model,) = models
    validation = database.execute(VALIDATION, run_id).fetchall()
    now = database.execute("SELECT now()").fetchone()
    assert now is not None  # one row, as every query without FROM
    samples, refused = _samples_or_refusal(database, runs[0].model, model, sampling)
    return Report(
        run=runs[0],
        model=model,
        points=_rows(database, Point, CURVES, POINTS, run_id),
        validation=validation[:: -(-len(validation) // POINTS) or 1],
        checkpoints=_rows(database, Checkpoint, CHECKPOINTS, runs[0].model),
        samples=samples,
        refused=refused,
        sampling=sampling,
        written_at=now[0],
    )


def _rows(database: Database, kind: type[Any], query: str, *args: Any) -> list[Any]:
    with database.conn.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(database.query(query), args).fetchall()


def _samples_or_refusal(
    database: Database, name: str, model: Model, sampling: Sampling
) -> tuple[list[Sample], str | None]:
    """The samples, or the server's error about the model or its memory; errors about `sampling` go to the caller."""
    try:
        with database.conn.transaction():  # a savepoint: the snapshot of the report outlives an error
            return _samples(database, name, model, sampling), None
    except (errors.DataException, errors.OutOfMemory) as error:
        return [], error.diag.message_primary


def _samples(database: Database, name: str, model: Model, sampling: Sampling) -> list[Sample]:
    if not model.n_params or not model.has_vocabulary:
        return []
    prompts: list[tuple[str, str | None]] = [(prompt, None) for prompt in sampling.prompts]
    return [
        Sample(prompt, _continuation(database, name, prompt, sampling), original)
        for prompt, original in prompts or _prompts(database, name)
    ]


def _prompts(database: Database, name: str) -> list[tuple[str, str | None]]:
    """The beginnings of texts in some rows of the data, for validation if there are such, and how they go on."""
    for split in ("val", "train"):
        arguments = (name, name, split, PROMPT_TOKENS, name, name, name, PROMPTS, PROMPTS)
        if rows := database.execute(PROMPT_ROWS, *arguments).fetchall():
            return [_decoded(database, name, tokens, *divided(pieces, ends)) for tokens, pieces, ends in rows]
    return [("", None)]


def divided(pieces: Sequence[str], ends: Sequence[bool]) -> tuple[int, int]:
    """Where a prompt begins in a row of tokens, and where its text ends; `ends` says which tokens end a text.

    A row is cut from the data without regard to words and texts. The prompt begins with a text, if one that is long enough begins
    in the row, otherwise with a word.
    """
    limits = [-1, *(place for place, end in enumerate(ends) if end), len(pieces)]
    before, last = max(pairwise(limits), key=lambda part: min(part[1] - part[0] - 1, 2 * PROMPT_TOKENS))
    words = (place for place in range(last - PROMPT_TOKENS) if pieces[place][:1].isspace())
    return (before + 1 if before >= 0 else next(words, 0)), last


def _decoded(database: Database, name: str, tokens: list[int], first: int, last: int) -> tuple[str, str | None]:
    """The prompt and how its text goes on."""
    middle = min(first + PROMPT_TOKENS, last)
    row = database.execute(
        "SELECT ltrim({llm_decode}(%s::integer[], %s)), nullif({llm_decode}(%s::integer[], %s), '')",
        *(tokens[first:middle], name, tokens[middle:last], name),
    ).fetchone()
    assert row is not None  # scalar functions
    return row


def _continuation(database: Database, name: str, prompt: str, sampling: Sampling) -> str:
    row = database.execute(
        "SELECT {llm_generate}(%s, %s::int4, temperature => %s, model_name => %s, seed => %s::int8, echo => false)",
        *(prompt, sampling.max_tokens, sampling.temperature, name, sampling.seed),
    ).fetchone()
    assert row is not None  # a scalar function
    return row[0]
