"""Tokenize text files, or the texts of a query, into rows of llm_dataset.

Every text is encoded whole, one end-of-text token follows each, and the stream of ids is cut into blocks; each block's
target is the stream one token later. What does not fill a last block is left out. --tokenizer is a tokenizer.json, or a
directory with one or with vocab.json and merges.txt; without it the vocabulary of --model in the database is used.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path

import numpy as np
import psycopg
from pg_gpt2.tokenizer.bpe import Tokenizer
from psycopg import sql

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, as_loader_error, bar, connect, fetched, run
from loaders.vocabulary import Vocabulary

GPT2_POSITIONS = 1024
ROWS = 100  # of a query that are fetched at a time


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files of all patterns, sorted within each pattern, none twice; LoaderError when a pattern matches nothing."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = [path for path in map(Path, sorted(glob(literal(pattern), recursive=True))) if path.is_file()]
        if not files:
            raise LoaderError(f"no file matches {pattern}")
        found |= dict.fromkeys(files)
    return list(found)


def literal(pattern: str) -> str:
    """`pattern` with the part of it that exists as it is written meant as such: `texts [1]/*.txt` is in that directory."""
    path = Path(pattern)
    found = next((path for path in (path, *path.parents) if path.exists()), Path())
    rest = path.relative_to(found)
    return str(Path(escape(str(found))) / rest)


def file_texts(files: Iterable[Path]) -> Iterator[str]:
    """The text of each file, its line ends kept; LoaderError when one is not UTF-8."""
    for path in files:
        try:
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise LoaderError(f"{path} is not UTF-8: {error}") from None


def query_texts(conn: psycopg.Connection, query: str) -> Iterator[str]:
    """The texts of a query of one text column, NULLs left out; LoaderError when it is no such query."""
    with conn.cursor(name="pg_gpt2_texts") as cursor:
        try:
            cursor.execute(sql.SQL(query))
        except psycopg.errors.SyntaxError as error:
            raise LoaderError(
                f"--query: {error.diag.message_primary}; it takes a query, such as 'SELECT body FROM documents'"
            ) from None
        for row in fetched(cursor, ROWS):
            if len(row) != 1 or not isinstance(row[0], str | None):
                raise LoaderError("the query must return one text column")
            if row[0] is not None:
                yield row[0]


def encode(texts: Iterable[str], tokenizer: Tokenizer, end_of_text: int) -> np.ndarray:
    """All ids, int32, with one `end_of_text` after each text; LoaderError when the vocabulary lacks a token of one."""
    parts: list[np.ndarray] = [np.empty(0, np.int32)]
    with bar(None, "tokenizing") as progress:
        for text in texts:
            with as_loader_error():
                parts.append(np.array([*tokenizer.encode(text), end_of_text], np.int32))
            progress.update(len(text))
    return np.concatenate(parts)


def cut(ids: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """tokens and target, [blocks, block_size] each, and how many ids at the end are in neither."""
    blocks = max(0, (len(ids) - 1) // block_size)
    used = blocks * block_size
    tokens = ids[:used].reshape(blocks, block_size)
    target = ids[1 : used + 1].reshape(blocks, block_size)
    return tokens, target, len(ids) - (used + 1 if blocks else 0)


def store(database: Database, model: str | None, split: str, tokens: np.ndarray, target: np.ndarray) -> None:
    """Insert blocks as rows of llm_dataset, in order, with a progress bar."""
    with bar(tokens.size, f"storing {split}", unit=" tokens") as progress:

        def rows() -> Iterator[tuple[str | None, str, list[int], list[int]]]:
            for row_tokens, row_target in zip(tokens, target, strict=True):
                yield model, split, row_tokens.tolist(), row_target.tolist()
                progress.update(len(row_tokens))

        database.copy("llm_dataset", {"model": "text", "split": "text", "tokens": "int4[]", "target": "int4[]"}, rows())


def find_vocabulary(database: Database, source: Path | None, model: str | None) -> Vocabulary:
    """The vocabulary in `source`, else the one that `model` has in the database; LoaderError when there is none."""
    if source is not None:
        return Vocabulary.find(source)
    if model is None:
        raise LoaderError("give --tokenizer, or --model of a model that has a vocabulary")
    found = Vocabulary.from_database(database, model)
    if found is None:
        raise LoaderError(
            f'model "{model}" has no vocabulary; give --tokenizer, or load one with pg-gpt2 ingest-tokenizer'
        )
    return found


def find_end_of_text(database: Database, model: str | None, vocabulary: Vocabulary, wanted: str | None) -> int:
    """The id of `wanted`, else of the model's end-of-text token, else of the vocabulary's; LoaderError when there is none."""
    if wanted is not None:
        found = vocabulary.ids.get(wanted)
    else:
        row = database.execute("SELECT eos_token_id FROM {llm_model_config} WHERE model = %s", model).fetchone()
        found = row[0] if row and row[0] is not None else vocabulary.eos
    if found is None:
        raise LoaderError(f"the vocabulary has no token {wanted or 'of end-of-text'}; name another with --end-of-text")
    return found


def find_block_size(database: Database, model: str | None, wanted: int | None) -> int:
    """`wanted`, else the model's window, else GPT-2's; LoaderError when it is longer than the window of the model."""
    row = database.execute("SELECT n_positions FROM {llm_model_config} WHERE model = %s", model).fetchone()
    if row and wanted and wanted > row[0]:
        raise LoaderError(f'--block-size {wanted} is more than the {row[0]} positions of model "{model}"')
    return wanted or (row[0] if row else GPT2_POSITIONS)


def count_rows(database: Database, model: str | None) -> int:
    """How many rows the model has, in all splits."""
    query = "SELECT count(*) FROM {llm_dataset} WHERE model IS NOT DISTINCT FROM %s"
    return (database.execute(query, model).fetchone() or (0,))[0]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--tokenizer", type=Path, help="directory or tokenizer.json; default: the model's vocabulary")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="GLOB", help="text files, UTF-8; ** descends")
    source.add_argument("--query", metavar="SQL", help="instead of files: a query that returns one text column")
    parser.add_argument("--block-size", type=int, help="tokens a row; default: n_positions of the model, else 1024")
    parser.add_argument(
        "--model", help="the model that the rows are for; default: every model whose vocabulary they fit"
    )
    parser.add_argument("--split", choices=("train", "val"), default="train", help="default: train")
    parser.add_argument(
        "--val-fraction", type=float, default=0.0, help="fraction of the rows, taken from the end, for split val"
    )
    parser.add_argument(
        "--end-of-text", metavar="TOKEN", help="token after each text; default: the model's or tokenizer's"
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="first delete the rows of this model, in all splits; without it they are kept",
    )
    args = parser.parse_args()
    if (args.block_size is not None and args.block_size < 1) or not 0 <= args.val_fraction < 1:
        parser.error("--block-size must be positive, --val-fraction at least 0 and below 1")
    return args


def main() -> None:
    """Parse the command line and load."""
    args = parse()
    with connect(args.dsn) as conn:
        database = Database(conn)
        block_size = find_block_size(database, args.model, args.block_size)
        vocabulary = find_vocabulary(database, args.tokenizer, args.model)
        end_of_text = find_end_of_text(database, args.model, vocabulary, args.end_of_text)
        texts = query_texts(conn, args.query) if args.input is None else file_texts(find_files(args.input))
        ids = encode(texts, vocabulary.encoder(), end_of_text)
        tokens, target, left = cut(ids, block_size)
        if not len(tokens):
            raise LoaderError(f"{len(ids)} tokens do not fill one block of {block_size} and its target")
        if args.truncate:
            database.execute("DELETE FROM {llm_dataset} WHERE model IS NOT DISTINCT FROM %s", args.model)
        first_val = len(tokens) - round(len(tokens) * args.val_fraction)
        before = count_rows(database, args.model)
        store(database, args.model, args.split, tokens[:first_val], target[:first_val])
        if first_val < len(tokens):
            store(database, args.model, "val", tokens[first_val:], target[first_val:])
    if before:
        print(f"{before} rows were there already, and were kept")
    print(
        f"stored {len(tokens)} rows of {block_size} tokens, {len(tokens) - first_val} of them set aside for val;"
        f" {left} of {len(ids)} tokens did not fill a block"
    )


if __name__ == "__main__":
    run(main)
