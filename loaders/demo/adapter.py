"""The scene about the adapter that ships: it is loaded beside its base, and both are asked which topic a text is about."""

import csv

from ..common import Database
from ..load_adapter import load_adapter
from ..load_model import SHIPPED
from .console import Console, literal

MODEL = "postgresql-topics"
PROMPT = r"body || E'\nThe problem is with the '"
TOPICS = "(SELECT array_agg(DISTINCT topic) AS topics FROM passage) AS t"
N_HELD_OUT = 562
TEXTS = (
    "Two sessions wait for each other forever.",
    "Our dump does not restore on the new machine.",
    "What is the largest number that fits into a column?",
    "Run a function after each insert.",
    "Connections from the new office are refused.",
)


def specialise(console: Console, base: str, most: int) -> None:
    """Show what the adapter consists of, and how often it and its base are right about some `most` passages."""
    console.title("A model that is another, and a little more")
    console.say(
        f"""
        An adapter is a model that has the weights of another, its base, and narrow matrices of its own beside them.
        {MODEL} learned by CALL llm_train_run to tell ten topics of the manual apart, from 1,695 passages.
        """
    )
    if console.value("SELECT 1 FROM llm_adapter WHERE model = %s", MODEL) is None:
        console.say("Before it is there:")
        weights(console, base)
        console.shell(f"pg-gpt2 load-adapter {MODEL} --base {base}")
        with console.conn.transaction():
            load_adapter(Database(console.conn), SHIPPED / MODEL, base, MODEL)
        console.say("And now. It brought a few rows, and no row of the base is another one:")
    weights(console, base)
    console.say("Here are passages of sections that it did not learn from, which have the ten topics:")
    console.run("CREATE TEMPORARY TABLE passage (topic text, body text)")
    console.copy("COPY passage FROM STDIN", held_out()[:: max(1, N_HELD_OUT // most)])
    texts = (",\n" + " " * 17).join(map(literal, TEXTS))
    console.say("Both models in one statement, about texts that are not of the manual:")
    console.run(
        f"""
        SELECT body, llm_classify({PROMPT}, topics) AS base,
               llm_classify({PROMPT}, topics, model_name => '{MODEL}') AS adapter
        FROM {TOPICS},
             unnest(ARRAY[
                 {texts}
             ]) AS body
        """
    )
    console.say("It can be wrong, as about the last. How often are the two right about the passages?")
    console.run(
        f"""
        SELECT model, n, round(accuracy::numeric, 2) AS accuracy, repeat('█', round(40 * accuracy)::integer) AS bar
        FROM {TOPICS},
             unnest(ARRAY['{base}', '{MODEL}']) AS model,
             llm_evaluate_choices($$SELECT {PROMPT}, topic FROM passage$$,
                                  topics, model_name => model)
        """
    )
    console.pause()


def weights(console: Console, base: str) -> None:
    """Show how much the weights of the models are, and a digest of them."""
    console.run(
        f"""
        SELECT model, count(*) AS rows, pg_size_pretty(sum(octet_length(data))) AS size,
               left(md5(string_agg(md5(data), '' ORDER BY name, token_id)), 8) AS digest
        FROM llm_param WHERE model IN ('{base}', '{MODEL}') GROUP BY model
        """
    )


def held_out() -> list[tuple[str, str]]:
    """(topic, body) of the passages that the adapter did not learn from."""
    with (SHIPPED / MODEL / "topics.csv").open(encoding="utf-8", newline="") as file:
        return [(row["topic"], row["body"]) for row in csv.DictReader(file) if int(row["section"]) % 4 == 0]
