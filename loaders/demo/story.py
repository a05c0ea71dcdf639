"""What the demonstration shows, chapter by chapter: text becomes a vocabulary, a model, and a model that has learned.

Everything is SQL that the viewer could type; only the progress bar and the printing of tokens are the client's.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from ..common import Database
from .console import BOLD, CYAN, DIM, GREEN, Console, sparkline

TEXT = Path(__file__).resolve().parents[1] / "data" / "postgresql_docs.txt"
SECTION_END = "\n====\n"
PROMPTS = ("A transaction", "If two transactions update the same row,")


@dataclass(frozen=True)
class Size:
    """How much is read, and what learns how much of it."""

    sections: int | None = None  # None = all
    vocab: int = 2048
    n_layer: int = 3
    n_head: int = 4
    d_model: int = 256
    n_positions: int = 128
    batch_size: int = 4
    copies: int = 12
    n_steps: int = 1200
    lr_max: float = 1e-3
    tokens: int = 80  # of a generation
    rehearsals: int = 20  # steps of the training that is rolled back


QUICK = Size(
    sections=6,
    vocab=400,
    n_layer=2,
    n_head=2,
    d_model=32,
    n_positions=64,
    copies=2,
    n_steps=20,
    tokens=12,
    rehearsals=4,
)


def tell(conn: psycopg.Connection, size: Size) -> None:
    """The whole demonstration, in an autocommit session."""
    began = time.perf_counter()
    console = Console(conn)
    find_extension(console)
    read(console, size)
    make_vocabulary(console, size)
    make_model(console, size)
    learn(console, size)
    write(console, size)
    roll_back(console, size)
    farewell(console, time.perf_counter() - began)


def find_extension(console: Console) -> None:
    """The schema of pg_gpt2 on the search path."""
    schema = Database(console.conn).schema
    if not console.value("SELECT %s = ANY (current_schemas(false))", schema):
        console.run(f"SET search_path = public, {sql.Identifier(schema).as_string(console.conn)}")


def read(console: Console, size: Size) -> None:
    """A table of text."""
    console.title("A table of text")
    console.say(
        """
        Some 200 kB of PostgreSQL's own manual, one row a section. It is all that this model will ever read.
        """
    )
    if console.value("SELECT to_regclass('postgresql_docs') IS NOT NULL"):
        console.run("DROP TABLE postgresql_docs")
    console.run(
        """
        CREATE TABLE postgresql_docs (
            id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            body text NOT NULL
        )
        """
    )
    sections = TEXT.read_text(encoding="utf-8").strip().split(SECTION_END)[: size.sections]
    console.copy("COPY postgresql_docs (body) FROM STDIN", sections)
    console.run(
        """
        SELECT count(*) AS sections, pg_size_pretty(sum(octet_length(body))) AS size FROM postgresql_docs
        """
    )


def make_vocabulary(console: Console, size: Size) -> None:
    """Byte-pair encoding, learned from that table."""
    console.title("A vocabulary")
    console.say(
        f"""
        GPT-2 reads tokens, not letters. Byte-pair encoding joins the most frequent pair of neighbours, again and again,
        until there are {size.vocab:,} tokens. Ġ stands for a space.
        """
    )
    left_behind = "SELECT model FROM {} WHERE model = 'demo' LIMIT 1"
    for table in ("llm_model_config", "llm_bpe_vocab", "llm_param", "llm_dataset"):
        if console.value(left_behind.format(table)):
            console.say("(The model of an earlier demonstration goes first.)")
            console.run("SELECT llm_drop_model('demo')")
            break
    console.run(f"SELECT llm_train_bpe('SELECT body FROM postgresql_docs ORDER BY id', {size.vocab}, 'demo') AS tokens")
    console.run(
        """
        SELECT string_agg(token, ' ' ORDER BY "position") AS tokens
        FROM llm_tokenize('A transaction is an all-or-nothing operation.', 'demo')
        """
    )


def make_model(console: Console, size: Size) -> None:
    """Random weights, in rows, and what they write."""
    console.title("A model")
    console.say(
        """
        GPT-2's architecture in small. Its weights are rows of llm_param, and random, as those of every model at first.
        """
    )
    console.run(
        f"""
        SELECT llm_init_model('demo', n_layer => {size.n_layer}, n_head => {size.n_head}, d_model => {size.d_model},
                              n_positions => {size.n_positions}, seed => 1)
        """
    )
    console.run(
        """
        SELECT n_layer, n_head, d_model, n_positions, vocab, n_params, pg_size_pretty(bytes) AS size
        FROM llm_models WHERE model = 'demo'
        """
    )
    console.say("It has learned nothing yet, and writes accordingly. Each token is shown as soon as it is there:")
    console.generate(PROMPTS[0], options(size, seed=1))


def options(size: Size, seed: int) -> str:
    """Arguments of a generation."""
    return f"{size.tokens}, temperature => 0.6, topk => 40, model_name => 'demo', seed => {seed}"


def learn(console: Console, size: Size) -> None:
    """llm_train, with the loss as it falls."""
    console.title("Learning")
    console.say(
        f"""
        The text, {size.copies} times over in different orders, is cut into rows of {size.n_positions} tokens. A training
        step takes {size.batch_size} rows, measures how surprised the model is by each next token (the loss), and moves
        every weight a little so that it will be less so. {size.n_steps:,} steps are one statement, and one transaction.
        """
    )
    console.run(
        f"""
        SELECT llm_dataset_load($$SELECT body FROM postgresql_docs, generate_series(1, {size.copies}) AS n
                                  ORDER BY md5(n || body)$$, 'demo', {size.n_positions}) AS rows
        """
    )
    progress = Progress(console, size.n_steps)
    with console.notices(progress.show):
        ((run_id,),) = console.run(
            f"""
            SELECT llm_train('demo', {size.n_steps}, batch_size => {size.batch_size}, lr_max => {size.lr_max},
                             warmup => {size.n_steps // 20}, beta2 => 0.99, grad_clip => 1, dropout_p => 0,
                             log_every => {progress.every}) AS run_id
            """
        )
    console.say("Every step has left a row in llm_train_log, so the curve is a query:")
    console.run(
        f"""
        SELECT max(step) AS step, round(avg(loss)::numeric, 2) AS loss, repeat('█', round(6 * avg(loss))::integer) AS curve
        FROM llm_train_log WHERE run_id = {run_id}
        GROUP BY (step - 1) / {-(-size.n_steps // 12)} ORDER BY 1
        """
    )


class Progress:
    """The NOTICEs of llm_train: on a terminal a line that is redrawn, elsewhere ten of them as they are."""

    def __init__(self, console: Console, n_steps: int) -> None:
        self.console = console
        self.n_steps = n_steps
        self.every = max(1, n_steps // (200 if console.live else 10))
        self.began = time.perf_counter()
        self.losses: list[float] = []

    def show(self, message: str) -> None:
        """Show a NOTICE."""
        found = re.match(r"step (\d+)/\d+: loss ([\d.]+)", message)
        if not (found and self.console.live):
            self.console.write(f"NOTICE:  {message}\n")
            return
        step = int(found[1])
        self.losses.append(float(found[2]))
        done = 20 * step // self.n_steps
        left = int((time.perf_counter() - self.began) / step * (self.n_steps - step))
        room = max(1, min(25, self.console.width - 64))
        paint = self.console.paint
        parts = [
            f"step {step:>{len(str(self.n_steps))}}/{self.n_steps}",
            paint("━" * done, GREEN) + paint("━" * (20 - done), DIM),
            f"loss {paint(found[2], BOLD)}",
            paint(sparkline(self.losses, room).ljust(room), CYAN),
            f"{left // 60}:{left % 60:02d} left",
        ]
        self.console.write("\r" + "  ".join(parts) + (" \n" if step == self.n_steps else " "))


def write(console: Console, size: Size) -> None:
    """The same model, some minutes later."""
    console.title("After")
    console.say("The same model, the same seed:")
    for seed, prompt in enumerate(PROMPTS, 1):
        console.generate(prompt, options(size, seed))
    console.say(
        """
        So small a model that has read so little knows the manual's words and phrases, not what they mean. What it computes
        is a probability for every token, given those before it:
        """
    )
    console.run(
        """
        SELECT rank, quote_literal(token) AS token, round(probability::numeric, 3) AS probability,
               repeat('█', round(40 * probability)::integer) AS bar
        FROM llm_next_token('SELECT FOR', 5, model_name => 'demo')
        """
    )


def roll_back(console: Console, size: Size) -> None:
    """A transaction in which the model learns one sentence, and ROLLBACK."""
    console.title("Rollback undoes learning")
    console.say("Weights are rows, so learning is a change like any other. The model learns one sentence by heart …")
    ask = "SELECT llm_generate('The elephant', 16, temperature => 0, model_name => 'demo', stop => ARRAY['.'])"
    console.run(ask)
    console.run("BEGIN")
    console.run("DELETE FROM llm_dataset WHERE model = 'demo'")
    console.run(
        """
        SELECT llm_dataset_load($$SELECT repeat('The elephant never forgets a committed row. ', 20)$$,
                                'demo', 64) AS rows
        """
    )
    with console.notices(lambda message: console.write(f"NOTICE:  {message}\n")):
        console.run(
            f"""
            SELECT llm_train('demo', {size.rehearsals}, batch_size => 1, lr_max => 1e-3, dropout_p => 0,
                             log_every => {size.rehearsals // 4}) AS run_id
            """
        )
    console.run(ask)
    console.say("… and forgets it. Weights, data and log are what they were:")
    console.run("ROLLBACK")
    console.run(ask)


def farewell(console: Console, seconds: float) -> None:
    """The model becomes the default of the database."""
    console.title("Your turn")
    console.run(f"ALTER DATABASE {console.value('SELECT quote_ident(current_database())')} SET pg_gpt2.model = 'demo'")
    console.say(f"That took {seconds:.0f} seconds. The model stays; `make psql` opens its database. Try for example:")
    for statement in (
        "SELECT llm_generate('The server', temperature => 0.6)",
        "SELECT * FROM llm_next_token('A transaction is')",
        "SELECT name, shape, step FROM llm_param WHERE model = 'demo'",
    ):
        console.statement(statement)
    console.say("README.md goes on from here; `make down` stops the cluster.")
