"""The scene about the adapter that ships: it is loaded beside its base, and both are asked which topic a passage is about."""

import csv

from ..common import Database
from ..load_adapter import load_adapter
from ..load_model import SHIPPED
from .console import Console

MODEL = "postgresql-topics"
ANSWER = r"body || E'\nThe problem is with the '"
TOPICS = "(SELECT array_agg(DISTINCT topic) FROM passage)"


def held_out() -> list[tuple[str, str]]:
    """(topic, body) of the passages that the adapter did not learn from."""
    with (SHIPPED / MODEL / "topics.csv").open(encoding="utf-8", newline="") as file:
        return [(row["topic"], row["body"]) for row in csv.DictReader(file) if int(row["section"]) % 4 == 0]


def specialise(console: Console, base: str, most: int) -> None:
    """Show what the adapter consists of, and how often it and its base are right about `most` passages."""
    console.title("A model that is another, and a little more")
    there = console.value("SELECT model FROM llm_adapter WHERE model = %s", MODEL)
    console.say(
        f"""
        The base has no idea of your labels. {MODEL} learned some, ten topics of the manual, from 1,695 passages, by
        llm_train_run: pairs of narrow matrices beside the layers of the base, in rows of a model of its own name. The other
        weights are those of the base, as they are:
        """
    )
    if there is None:
        console.shell(f"pg-gpt2 load-adapter {MODEL} --base {base}")
        with console.conn.transaction():
            load_adapter(Database(console.conn), SHIPPED / MODEL, base, MODEL)
    console.run(
        f"""
        SELECT model, count(*) AS rows, pg_size_pretty(sum(octet_length(data))) AS size
        FROM llm_param WHERE model IN ('{base}', '{MODEL}') GROUP BY model
        """
    )
    passages = held_out()[:: max(1, 560 // most)]
    console.say("Passages of sections that it did not learn from:")
    console.run("CREATE TEMPORARY TABLE passage (topic text, body text)")
    console.copy("COPY passage FROM STDIN", passages)
    console.run(
        f"""
        SELECT topic, left(body, 40) AS body, llm_classify({ANSWER}, {TOPICS}) AS base,
               llm_classify({ANSWER}, {TOPICS}, model_name => '{MODEL}') AS adapter
        FROM passage ORDER BY md5(body) LIMIT 6
        """
    )
    console.say("How often each of the two is right about all of them:")
    console.run(
        f"""
        SELECT model, n, round(accuracy::numeric, 2) AS accuracy, repeat('█', round(40 * accuracy)::integer) AS bar
        FROM unnest(ARRAY['{base}', '{MODEL}']) AS model,
             llm_evaluate_choices($$SELECT {ANSWER}, topic FROM passage$$, {TOPICS}, model_name => model)
        """
    )
    console.say("One database, two models, the weights of one. Whoever asks the base hears what it said before.")
    console.pause()
