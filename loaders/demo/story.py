"""What the demonstration shows, with the model that ships: it writes, decides, has an adapter, is looked into, learns, forgets.

Everything is SQL that the viewer could type; only the loading of files, the progress bar and the printing of tokens are
the client's. What is changed is put back in the end; model and adapter stay, with a checkpoint of the model.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from ..common import Database
from ..load_model import SHIPPED, load_model
from .adapter import specialise
from .console import BOLD, CYAN, DIM, GREEN, Console, literal, sparkline

MODEL = "postgresql-docs"
PROMPTS = ("A transaction", "To create an index on a large table,")
STATEMENTS = "CREATE INDEX name; DROP INDEX name; CREATE TABLE name; DROP"
QUESTIONS = (
    "Can I restore a single schema?",
    "Can an expression be indexed?",
    "How do I grant access to all tables?",
    "The standby is far behind the primary.",
)
WORDING = r"E'\nThe problem is with the '"
TOPICS = "ARRAY['backup', 'index', 'privileges', 'replication']"
BLOCK = 64  # tokens of a row to learn from
ATTENTIVE = (5, 0)  # layer and head that look back at the last semicolon

LETTERS = (
    "Dear customer, thank you for your order. The blue bicycle will be with you on Monday. Kind regards, Anna",
    "Dear customer, we are sorry that the lamp came without a bulb. A new one is on its way. Kind regards, Tom",
    "Dear customer, thank you for your letter. Yes, the tent has room for four, and for a dog. Kind regards, Anna",
    "Dear customer, your money will be back in your account by Friday. We hope to see you again. Kind regards, Ruth",
    "Dear customer, the red shoes are sold out. May we send you the green ones? Kind regards, Tom",
    "Dear customer, thank you for your patience. The kettle is mended, and sings again. Kind regards, Ruth",
    "Dear customer, the parcel is with your neighbour, who was so kind as to sign for it. Kind regards, Anna",
    "Dear customer, we do not sell elephants. Have you thought of a cat? Kind regards, Tom",
)


@dataclass(frozen=True)
class Size:
    """How much is written, and learned."""

    tokens: int = 80  # of a generation
    n_steps: int = 32
    batch_size: int = 4
    copies: int = 4
    most_tokens: int = 300_000  # that are learned from: a minute on two cores
    passages: int = 90  # that base and adapter are asked about

    def lesson(self, tokens: int) -> tuple[int, int]:
        """(copies, steps) for texts of so many tokens: short texts are repeated; long ones are read once, if time allows."""
        step = self.batch_size * BLOCK
        if tokens * self.copies <= self.n_steps * step:
            return self.copies, self.n_steps
        return 1, max(self.n_steps, min(-(-tokens // step), self.most_tokens // step))


QUICK = Size(tokens=12, n_steps=6, batch_size=2, copies=2, most_tokens=2_000, passages=20)


def tell(
    conn: psycopg.Connection, size: Size, texts: Sequence[str], *, began: float, pauses: bool, left_out: int = 0
) -> None:
    """Show the whole demonstration, in an autocommit session.

    `began` is time.perf_counter() of the start, `left_out` how many more texts the viewer's file has.
    """
    console = Console(conn, pauses=pauses)
    find_extension(console)
    bring(console)
    write(console, size, began)
    decide(console)
    specialise(console, MODEL, size.passages)
    look(console)
    texts = texts or LETTERS
    learn(console, size, texts, left_out)
    forget(console, texts)
    keep(console)
    farewell(console, time.perf_counter() - began)


def find_extension(console: Console) -> None:
    """Put the schema of pg_gpt2 on the search path, if it is not there."""
    schema = Database(console.conn).schema
    if not console.value("SELECT %s = ANY (current_schemas(false))", schema):
        console.run(f"SET search_path = public, {sql.Identifier(schema).as_string(console.conn)}")


def bring(console: Console) -> None:
    """Load the shipped model, if it is not there, and make it the default of the database."""
    console.title("A model that learned in PostgreSQL")
    if console.value("SELECT step FROM llm_models WHERE model = %s AND bytes > 0", MODEL) is not None:
        console.say(f"The model {MODEL} is in this database from an earlier time, and is taken as it is.")
    else:
        console.say(
            """
            Six million weights, which one CALL llm_train_run taught the PostgreSQL manual, inside a server like this one,
            from nothing. They ship with pg_gpt2; loading makes rows of them:
            """
        )
        console.shell(f"pg-gpt2 load-model {MODEL}")
        with console.conn.transaction():
            load_model(Database(console.conn), SHIPPED / MODEL, MODEL)
    database = console.value("SELECT quote_ident(current_database())")
    console.run(f"ALTER DATABASE {database} SET pg_gpt2.model = '{MODEL}'")
    console.run(f"SET pg_gpt2.model = '{MODEL}'")


def write(console: Console, size: Size, began: float) -> None:
    """Let it write, each token shown as it comes, and show what there is to choose from."""
    console.say("It writes. Each token is shown as soon as it is there:")
    for seed, prompt in enumerate(PROMPTS, 1):
        console.generate(prompt, f"{size.tokens}, temperature => 0.6, seed => {seed}")
    assert console.first_text is not None
    seconds = console.first_text - began
    console.write(console.paint(f"The first text came {seconds:.1f} s after the cluster was up.\n", BOLD))
    console.say(
        """
        So small a model knows the manual's words and phrases, not what they mean. What it computes is a probability for
        every token, given those before it:
        """
    )
    console.run(
        """
        SELECT rank, quote_literal(token) AS token, round(probability::numeric, 3) AS probability,
               repeat('█', round(40 * probability)::integer) AS bar
        FROM llm_next_token('The transaction is rolled', 5)
        """
    )
    console.pause()


def decide(console: Console) -> None:
    """Show a choice, a column that is filled by choices, and a row made from a text; the tables are the session's own."""
    console.title("Deciding")
    console.say("It can be asked to choose. How probable is each of four words behind a question?")
    console.run(
        f"""
        SELECT choice, round(probability::numeric, 3) AS probability, repeat('█', round(40 * probability)::integer) AS bar
        FROM llm_choose({literal(QUESTIONS[-1])} || {WORDING},
                        {TOPICS})
        """
    )
    console.say("So texts fill a column, and nothing but one of the four can come out:")
    console.run("CREATE TEMPORARY TABLE question (body text, topic text)")
    console.run(f"INSERT INTO question (body) SELECT unnest(ARRAY[{', '.join(map(literal, QUESTIONS))}])")
    console.run(
        f"""
        UPDATE question SET topic = llm_classify(body || {WORDING},
                                                 {TOPICS})
        RETURNING body, topic
        """
    )
    console.say(
        """
        It can be asked for a whole row. The definition of a table says what fits, and nothing else is written, though so
        small a model, which has hardly seen JSON, is easily wrong:
        """
    )
    console.run(
        """
        CREATE TEMPORARY TABLE entry (
            topic text NOT NULL CHECK (topic IN ('backup', 'index')),
            urgency integer NOT NULL CHECK (urgency BETWEEN 1 AND 3)
        )
        """
    )
    console.run(
        f"""
        INSERT INTO entry
        SELECT made.* FROM jsonb_populate_record(NULL::entry, llm_generate_json(
            {literal(QUESTIONS[1])} || {WORDING}, llm_json_schema('entry'), temperature => 0)) AS made
        RETURNING *
        """
    )
    console.pause()


def look(console: Console) -> None:
    """Show the weights as rows, and an attention head."""
    console.title("Looking inside")
    console.say("Weights are rows, and so is every intermediate value:")
    console.run(
        f"""
        SELECT name, shape, pg_size_pretty(octet_length(data)::bigint) AS size
        FROM llm_param WHERE model = '{MODEL}' AND name LIKE 'h.5.%weight' ORDER BY name
        """
    )
    layer, head = ATTENTIVE
    console.say(
        f"""
        Attention is how a token learns of those before it. Head {head} of layer {layer} keeps an eye on where a statement ended:
        it looks back at the last semicolon. One line for each token, one column for each that it can look at, the
        darker the more it takes:
        """
    )
    console.run(
        f"""
        SELECT query_token AS token,
               string_agg(substr('·░▒▓█', 1 + least(4, (5 * weight)::integer), 1), '' ORDER BY key_position) AS looks_at,
               (array_agg(key_token ORDER BY weight DESC))[1] AS most
        FROM llm_attention_weights({literal(STATEMENTS)}, {layer}, {head})
        GROUP BY query_position, query_token ORDER BY query_position
        """
    )
    console.pause()


def learn(console: Console, size: Size, texts: Sequence[str], left_out: int = 0) -> None:
    """Fine-tune in a transaction, which stays open, and show the graph of the last step."""
    console.title("Learning")
    console.say(
        "It has read nothing but the manual. Asked to go on with other people's kind of text, it writes more manual:"
    )
    ask(console, texts)
    console.say(
        "Here are some rows of that kind. Weights are rows, so learning is a change like any other, and fits a BEGIN:"
    )
    if left_out:
        console.say(
            f"The file has {left_out:,} lines more; these are the first {len(texts):,}, a few million characters."
        )
    console.run("BEGIN")
    console.run("CREATE TABLE letter (id integer GENERATED ALWAYS AS IDENTITY, body text)")
    console.copy("COPY letter (body) FROM STDIN", ([text] for text in texts))
    console.run("SELECT id, left(body, 120) AS body FROM letter LIMIT 3")
    run_id = train(console, size)
    console.run(f"SELECT llm_run_sparkline({run_id}) AS loss")
    console.say("Now it knows the tone:")
    ask(console, texts)
    console.pause()
    graph(console, run_id)


def train(console: Console, size: Size) -> int:
    """Make the table of texts the model's data, and train it on them for as long as `size` allows; the run."""
    ((lines, tokens),) = console.run(
        f"SELECT count(*) AS lines, sum(llm_token_count(body, '{MODEL}') + 1) AS tokens FROM letter"
    )
    copies, n_steps = size.lesson(tokens)
    if console.value("SELECT id FROM llm_dataset WHERE model = %s LIMIT 1", MODEL):
        console.run(f"DELETE FROM llm_dataset WHERE model = '{MODEL}'")
    console.run(
        f"""
        SELECT llm_dataset_load('SELECT body FROM letter, generate_series(1, {copies}) AS n ORDER BY md5(n || body)',
                                '{MODEL}', {BLOCK}) AS rows
        """
    )
    read = n_steps * size.batch_size * BLOCK / tokens
    share = (
        f"so each is read {read:.1f} times"
        if read >= 1
        else f"and there is time for {read:.0%} of the rows, from all over the file"
    )
    console.say(f"{lines:,} lines; {n_steps} steps of {size.batch_size} rows, {share}:")
    progress = Progress(console, n_steps)
    with console.notices(progress.show):
        ((run_id,),) = console.run(
            f"""
            SELECT llm_train('{MODEL}', {n_steps}, batch_size => {size.batch_size}, lr_max => 5e-4, dropout_p => 0,
                             log_every => {progress.every}) AS run_id
            """
        )
    return run_id


def ask(console: Console, texts: Sequence[str]) -> None:
    """Show the most probable continuation of the first words of the texts."""
    prompt = " ".join(texts[0].split()[:2])
    console.run(f"SELECT llm_generate({literal(prompt)}, 40, temperature => 0, stop => ARRAY[E'\\n'])")


def graph(console: Console, run_id: int) -> None:
    """Show what the tape has of the last step."""
    console.title("The graph of a step")
    console.say("The last training step left a record, one row an operation:")
    console.run(
        f"""
        SELECT name, count(*) FROM llm_tape WHERE run_id = {run_id} GROUP BY name ORDER BY count DESC
        """
    )
    console.say(
        "A graph in a table can be walked. From a weight to the loss, where backpropagation came the other way:"
    )
    console.run(
        f"""
        WITH RECURSIVE way AS (
            SELECT o.name, o.output, 1 AS n
            FROM llm_tensor AS t JOIN llm_tape AS o ON t.id = ANY (o.inputs)
            WHERE t.name = 'h.5.mlp.c_fc.weight' AND o.run_id = {run_id}
            UNION ALL
            SELECT o.name, o.output, n + 1 FROM way JOIN llm_tape AS o ON way.output = ANY (o.inputs)
        )
        SELECT string_agg(name, ' → ' ORDER BY n) AS way FROM way
        """
    )
    console.pause()


def forget(console: Console, texts: Sequence[str]) -> None:
    """Roll back the transaction of `learn`, and show that nothing is left of it."""
    console.title("Rollback undoes learning")
    console.say("Table, data, log, tape and weights are what they were:")
    console.run("ROLLBACK")
    ask(console, texts)
    console.pause()


def keep(console: Console) -> None:
    """Make a checkpoint, damage the weights, and restore the checkpoint."""
    console.title("A version to go back to")
    console.say("What is committed, a checkpoint brings back. Here somebody forgets half of a WHERE clause:")
    ((checkpoint,),) = console.run(f"SELECT llm_checkpoint_save('{MODEL}', 'before the accident') AS checkpoint")
    console.run(
        f"""
        UPDATE llm_param SET data = pg_llm_zeros_like(data)
        WHERE model = '{MODEL}' AND name LIKE 'h._.attn.c_proj.weight'
        """
    )
    ask_manual = f"SELECT llm_generate({literal(PROMPTS[0])}, 24, temperature => 0)"
    console.run(ask_manual)
    console.say("No layer looks back any more. What changed, and how to have it back:")
    console.run(
        f"SELECT count(*) FILTER (WHERE changed) AS changed, count(*) AS tensors FROM llm_checkpoint_diff({checkpoint})"
    )
    console.run(f"SELECT llm_checkpoint_load('{MODEL}', {checkpoint}) AS step")
    console.run(ask_manual)
    console.pause()


def farewell(console: Console, seconds: float) -> None:
    """Tell what the viewer can do now."""
    console.title("Your turn")
    console.say(
        f"""
        That took {seconds:.0f} seconds. The model stays, and is the default; `make psql` opens its database. Try for
        example:
        """
    )
    for statement in (
        "SELECT llm_generate('The server')",
        "SELECT * FROM llm_next_token('SELECT * FROM')",
        "SELECT llm_perplexity('To be or not to be'), llm_perplexity('To drop a table, use DROP TABLE.')",
    ):
        console.statement(statement)
    console.say(
        f"""
        README.md goes on from here; loaders/shipped/{MODEL} tells how the model was made. `make demo TEXT=file` teaches it
        the lines of a file of yours; `make down` stops the cluster.
        """
    )


class Progress:
    """NOTICEs of llm_train: on a terminal a moving bar with the loss beside it, elsewhere printed as they are."""

    def __init__(self, console: Console, n_steps: int) -> None:
        self.console = console
        self.n_steps = n_steps
        self.every = max(1, n_steps // (32 if console.live else 8))
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
        room = max(1, min(25, self.console.width - 54))
        paint = self.console.paint
        parts = [
            f"step {step:>{len(str(self.n_steps))}}/{self.n_steps}",
            paint("━" * done, GREEN) + paint("━" * (20 - done), DIM),
            f"loss {paint(found[2], BOLD)}",
            paint(sparkline(self.losses, room).ljust(room), CYAN),
        ]
        self.console.write("\r" + "  ".join(parts) + (" \n" if step == self.n_steps else " "))
