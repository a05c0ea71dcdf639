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


@dataclass(frozen=True)
class Size:
    """How much is read and learned."""

    sections: int | None = None
    vocab: int = 1024
    n_layer: int = 4
    n_head: int = 4
    d_model: int = 192
    n_positions: int = 128
    batch_size: int = 4
    n_steps: int = 1500
    lr_max: float = 3e-3
    words: int = 80  # tokens of a generation
    rehearsals: int = 40  # steps of the training that is rolled back


QUICK = Size(
    sections=6, vocab=400, n_layer=2, n_head=2, d_model=32, n_positions=64, n_steps=20, words=12, rehearsals=5
)  # fmt: skip

PROMPTS = ("A transaction", "The index")


def tell(conn: psycopg.Connection, size: Size) -> None:
    """The whole demonstration, in an autocommit session."""
    began = time.perf_counter()
    console = Console(conn)
    find_extension(console)
    read(console, size)
    make_vocabulary(console, size)
    make_model(console, size)
    console.say("It has learned nothing yet, and writes accordingly:")
    console.generate(PROMPTS[0], options(size, seed=1))
    learn(console, size)
    console.title("After")
    for seed, prompt in enumerate(PROMPTS, 1):
        console.generate(prompt, options(size, seed))
    next_token(console)
    roll_back(console, size)
    farewell(console, time.perf_counter() - began)


def options(size: Size, seed: int) -> str:
    """Arguments of the generations."""
    return f"{size.words}, temperature => 0.7, topk => 40, model_name => 'demo', seed => {seed}"


def find_extension(console: Console) -> None:
    """The schema of pg_gpt2 on the search path."""
    schema = Database(console.conn).schema
    row = console.conn.execute("SELECT %s = ANY (current_schemas(false))", [schema]).fetchone()
    if not (row and row[0]):
        console.run(f"SET search_path = public, {sql.Identifier(schema).as_string(console.conn)}")


def read(console: Console, size: Size) -> None:
    """A table of text."""
    conn = console.conn
    console.title("A table of text")
    console.say("200 kB of PostgreSQL's own manual, one row a section. It is all that the model will ever read.")
    conn.execute("SET client_min_messages = warning")
    conn.execute("DROP TABLE IF EXISTS postgresql_docs")
    conn.execute("RESET client_min_messages")
    console.run(
        "CREATE TABLE postgresql_docs (\n    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n    body text NOT NULL\n)"
    )
    console.statement("COPY postgresql_docs (body) FROM STDIN")
    sections = TEXT.read_text(encoding="utf-8").strip().split(SECTION_END)[: size.sections]
    with conn.cursor() as cursor:
        with cursor.copy("COPY postgresql_docs (body) FROM STDIN") as copy:
            for section in sections:
                copy.write_row([section.strip()])
        console.write(f"{cursor.statusmessage}\n")
    console.run(
        "SELECT count(*) AS sections, pg_size_pretty(sum(octet_length(body))) AS size, min(left(body, 36)) AS first\n"
        "FROM postgresql_docs"
    )


def make_vocabulary(console: Console, size: Size) -> None:
    """Byte-pair encoding, learned from that table."""
    console.title("A vocabulary")
    console.say(
        "GPT-2 reads tokens, not letters. Byte-pair encoding joins the most frequent pairs of neighbours again and again,"
        f" until there are {size.vocab:,} tokens. (Ġ stands for a space.)"
    )
    for table in ("llm_model_config", "llm_bpe_vocab", "llm_param"):
        if console.conn.execute(sql.SQL("SELECT FROM {} WHERE model = 'demo' LIMIT 1").format(sql.Identifier(table))).rowcount:
            console.say("(One of an earlier demonstration goes first.)")
            console.run("SELECT llm_drop_model('demo')")
            break
    console.run(f"SELECT llm_train_bpe('SELECT body FROM postgresql_docs ORDER BY id', {size.vocab}, 'demo')")
    console.run(
        "SELECT string_agg(token, ' ' ORDER BY \"position\") AS tokens\n"
        "FROM llm_tokenize('A transaction is an all-or-nothing operation.', 'demo')"
    )


def make_model(console: Console, size: Size) -> None:
    """Random weights, in rows."""
    console.title("A model")
    console.say("GPT-2's architecture in small, with random weights. The weights are rows of the table llm_param.")
    console.run(
        f"SELECT llm_init_model('demo', n_layer => {size.n_layer}, n_head => {size.n_head}, d_model => {size.d_model},\n"
        f"                      n_positions => {size.n_positions}, seed => 1)"
    )
    console.run(
        "SELECT model, n_layer, d_model, vocab, n_params, pg_size_pretty(bytes) AS size FROM llm_models WHERE model = 'demo'"
    )


def learn(console: Console, size: Size) -> None:
    """llm_train, with the loss as it falls."""
    console.title("Learning")
    console.say(
        f"The text is cut into rows of {size.n_positions} tokens. A step looks at {size.batch_size} of them, finds for every"
        " token how surprised the model is by the next one (the loss, in nats), and moves all weights a little so that it is"
        " less so. All steps are one statement and one transaction."
    )
    console.run(
        f"SELECT llm_dataset_load('SELECT body FROM postgresql_docs ORDER BY id', 'demo', {size.n_positions}) AS rows"
    )
    progress = Progress(console, size.n_steps)
    with console.notices(progress.show):
        ((run_id,),) = console.run(
            f"SELECT llm_train('demo', {size.n_steps}, batch_size => {size.batch_size}, lr_max => {size.lr_max}, beta2 => 0.99, dropout_p => 0,\n"
            f"                 grad_clip => 1, warmup => {size.n_steps // 20}, log_every => {progress.every}) AS run_id"
        )
    console.say("Every step has left a row in llm_train_log:")
    console.run(
        f"SELECT max(step) AS step, round(avg(loss)::numeric, 2) AS loss, repeat('█', round(6 * avg(loss))::integer) AS curve\n"
        f"FROM llm_train_log WHERE run_id = {run_id}\n"
        f"GROUP BY (step - 1) / {-(-size.n_steps // 12)} ORDER BY 1"
    )


class Progress:
    """The NOTICEs of llm_train: on a terminal a line that is redrawn, elsewhere ten of them as they are."""

    def __init__(self, console: Console, n_steps: int) -> None:
        self.console = console
        self.n_steps = n_steps
        self.every = max(1, n_steps // (300 if console.live else 10))
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
        done = 24 * step // self.n_steps
        left = (time.perf_counter() - self.began) / step * (self.n_steps - step)
        paint = self.console.paint
        self.console.write(
            f"\r  step {step:>{len(str(self.n_steps))}}/{self.n_steps} {paint('━' * done, GREEN)}{paint('━' * (24 - done), DIM)}"
            f"  loss {paint(found[2], BOLD)}  {paint(sparkline(self.losses, 30).ljust(30), CYAN)}"
            f"  {int(left) // 60}:{int(left) % 60:02d} left "
        )
        if step == self.n_steps:
            self.console.write("\n")


def next_token(console: Console) -> None:
    """Probabilities of what could come next."""
    console.say("What a model computes is one probability for each token, given what is before it:")
    console.run(
        "SELECT rank, quote_literal(token) AS token, round(probability::numeric, 3) AS probability, repeat('█', round(40 * probability)::integer) AS bar\n"
        "FROM llm_next_token('The table is locked in access exclusive', 5, model_name => 'demo')"
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
        "SELECT llm_dataset_load($$SELECT repeat('The elephant never forgets a committed row. ', 20)$$, 'demo', 64) AS rows"
    )
    with console.notices(lambda message: console.write(f"NOTICE:  {message}\n")):
        console.run(
            f"SELECT llm_train('demo', {size.rehearsals}, batch_size => 1, lr_max => 1e-3, dropout_p => 0,"
            f" log_every => {size.rehearsals // 4}) AS run_id"
        )
    console.run(ask)
    console.say("… and forgets it: weights, data and log are as they were.")
    console.run("ROLLBACK")
    console.run(ask)


def farewell(console: Console, seconds: float) -> None:
    """The model becomes the default of the database."""
    console.title("Your turn")
    row = console.conn.execute("SELECT quote_ident(current_database())").fetchone()
    database = row[0] if row else ""
    console.run(f"ALTER DATABASE {database} SET pg_gpt2.model = 'demo'")
    console.say(f"That took {seconds:.0f} s. The model stays in the database; `make psql` opens it. Try for example:")
    for statement in (
        "SELECT llm_generate('The server', temperature => 0.7)",
        "SELECT * FROM llm_next_token('VACUUM')",
        "SELECT name, shape, step FROM llm_param WHERE model = 'demo'",
    ):
        console.statement(statement)
    console.say("`make down` stops the cluster. README.md has the rest.")
