"""The client for an ordinary connection. aio.py is its asynchronous twin: same methods, same statements."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .names import BeamNames, GenerateNames, SamplingNames, accepts_hugging_face_names
from .results import Beam, StreamEvent
from .statements import FIND_SCHEMA, Statement, Statements, cursor_name, generation
from .training import TrainingOptions, check_options, progress_bar

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PGLLMClient:
    """Generation, scoring and training by the pg_gpt2 of a database.

    `conn` is the caller's: it stays open, and no method commits what the caller began. `model` is the model of calls that
    name none; None leaves the choice to the server (setting `pg_gpt2.model`, else gpt2-small,
    else the only model that has weights). Errors are psycopg's.

    >>> client = PGLLMClient(psycopg.connect("dbname=llm"), model="demo")
    >>> client.generate("The database", max_tokens=20, seed=1)
    """

    def __init__(self, conn: psycopg.Connection[Any], *, model: str | None = None) -> None:
        self.conn = conn
        self.model = model
        self._found: Statements | None = None
        self._streams = 0
        self._transaction = ExitStack()

    @accepts_hugging_face_names
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        topk: int = 50,
        topp: float = 0.95,
        model: str | None = None,
        eos_token: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        repetition_penalty: float = 1.0,
        min_p: float = 0.0,
        echo: bool = True,
        **beams: Unpack[GenerateNames],
    ) -> str:
        """Continue `prompt`: prompt and completion, or with `echo=False` the completion.

        temperature 0 is greedy; topk 0, topp 1 and min_p 0 keep all tokens; eos_token None = the model's, -1 = none.
        The same seed gives the same text. Hugging Face's names are taken as well: max_new_tokens, top_k, top_p, do_sample,
        and num_beams, which above 1 makes this the best continuation that `beam_search` finds.
        """
        if beams:
            found = self.beam_search(
                prompt,
                beam_width=beams["num_beams"],
                max_tokens=max_tokens,
                length_penalty=beams.get("length_penalty", 1.0),
                early_stopping=beams.get("early_stopping", False),
                eos_token=eos_token,
                model=model,
            )
            return (prompt if echo else "") + (found[0].text or "")
        options = generation(
            *(max_tokens, temperature, topk, topp, model or self.model, eos_token, seed, stop),
            *(repetition_penalty, min_p, echo),
        )
        return self._value(self._statements().value("llm_generate", prompt=prompt, **options))

    @accepts_hugging_face_names
    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        topk: int = 50,
        topp: float = 0.95,
        model: str | None = None,
        eos_token: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        repetition_penalty: float = 1.0,
        min_p: float = 0.0,
        echo: bool = True,
        **_: Unpack[SamplingNames],
    ) -> Generator[StreamEvent, None, None]:
        """Continue `prompt`, one event a token, each as soon as it is computed. Options are those of `generate`.

        Closing the iterator (`break`, `contextlib.closing`) ends the work. On an autocommit connection a transaction
        is open while streams are; what else is done on the connection meanwhile is part of it, and committed at its
        end.
        """
        options = generation(
            *(max_tokens, temperature, topk, topp, model or self.model, eos_token, seed, stop),
            *(repetition_penalty, min_p, echo),
        )
        with self._transaction_of_streams(), self.conn.cursor(cursor_name(), row_factory=tuple_row) as cursor:
            cursor.itersize = 1
            cursor.execute(*self._statements().stream("llm_generate_stream", prompt=prompt, **options))
            for row in cursor:
                yield StreamEvent(*row)

    @accepts_hugging_face_names
    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        topk: int = 50,
        topp: float = 0.95,
        model: str | None = None,
        eos_token: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        repetition_penalty: float = 1.0,
        min_p: float = 0.0,
        echo: bool = True,
        **_: Unpack[SamplingNames],
    ) -> list[str]:
        """Continue several prompts at once, faster than one after another; prompt n (from 0) draws with seed + n."""
        options = generation(
            *(max_tokens, temperature, topk, topp, model or self.model, eos_token, seed, stop),
            *(repetition_penalty, min_p, echo),
        )
        rows = self._rows(self._statements().rows("llm_generate_batch", prompts=list(prompts), **options))
        return [text for _, text in rows]

    @accepts_hugging_face_names
    def beam_search(
        self,
        prompt: str | None = None,
        *,
        beam_width: int = 3,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        eos_token: int | None = None,
        model: str | None = None,
        prompt_ids: Sequence[int] | None = None,
        **_: Unpack[BeamNames],
    ) -> list[Beam]:
        """The `beam_width` best continuations of a prompt, or of `prompt_ids`, best first, as Hugging Face finds them."""
        arguments = {
            "prompt": prompt,
            "beam_width": beam_width,
            "max_tokens": max_tokens,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "eos_token": eos_token,
            "model_name": model or self.model,
            "prompt_ids": None if prompt_ids is None else list(prompt_ids),
        }
        return [Beam(*row) for row in self._rows(self._statements().rows("llm_beam_search", **arguments))]

    def embed(
        self, text: str, *, layer: int | None = None, pooling: str = "mean", model: str | None = None
    ) -> list[float] | None:
        """Hidden state of a text, d_model numbers: after `layer` blocks (None = all), 'mean' of the tokens or 'last'; None of an
        empty one."""
        arguments = {"text_in": text, "layer": layer, "pooling": pooling, "model_name": model or self.model}
        return self._value(self._statements().value("llm_text_embedding", **arguments))

    def perplexity(self, text: str, *, model: str | None = None, from_start: bool = False) -> float | None:
        """Perplexity of a text of at least two tokens, with `from_start` of one; None of a shorter one.

        With `from_start` the first token is scored, too, as what follows an end-of-text token.
        """
        arguments = {"text_in": text, "model_name": model or self.model, "from_start": from_start}
        return self._value(self._statements().value("llm_perplexity", **arguments))

    def train(
        self,
        n_steps: int,
        *,
        model: str | None = None,
        source: str | None = None,
        block_size: int | None = None,
        val_fraction: float = 0.0,
        commit_every: int | None = None,
        progress: bool | None = None,
        **options: Unpack[TrainingOptions],
    ) -> int:
        """Train for `n_steps` AdamW steps; the run_id under which the server logged them.

        The data are the rows of llm_dataset; `source`, a query of one text column such as 'SELECT body FROM posts', is
        first tokenized into blocks of `block_size`. `progress` shows a bar: None = on a terminal only.

        All is one transaction, which on a connection that is not in autocommit mode is the caller's to commit. With
        `commit_every`, for long runs in autocommit mode, the server commits as it goes (llm_train_run), and the same call
        goes on with a run that was cut short.
        """
        check_options(dict(options), source, commit_every)
        model = model or self.model
        if commit_every is not None:
            run = self._statements().procedure(
                "llm_train_run", model=model, n_steps=n_steps, commit_every=commit_every, **options
            )
            with progress_bar(self.conn, n_steps, model, progress):
                self._execute(run)
            return self._value(self._statements().ended_run(model))
        with self.conn.transaction() if self.conn.autocommit else nullcontext():
            if source is not None:
                data = {"source": source, "model": model, "block_size": block_size, "val_fraction": val_fraction}
                self._value(self._statements().value("llm_dataset_load", **data))
            with progress_bar(self.conn, n_steps, model, progress):
                return self._value(self._statements().value("llm_train", model=model, n_steps=n_steps, **options))

    # ---- how statements are run: never prepared, since behind a pooler the next one may meet another session

    def _statements(self) -> Statements:
        if self._found is None:
            with self.conn.cursor(row_factory=tuple_row) as cursor:
                found = cursor.execute(FIND_SCHEMA, prepare=False).fetchone()
            self._found = Statements(found, self.conn.info.dbname)
        return self._found

    def _execute(self, statement: Statement) -> None:
        with self.conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(*statement, prepare=False)

    def _rows(self, statement: Statement) -> list[tuple[Any, ...]]:
        with self.conn.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(*statement, prepare=False).fetchall()

    def _value(self, statement: Statement) -> Any:
        return self._rows(statement)[0][0]

    @contextmanager
    def _transaction_of_streams(self) -> Iterator[None]:
        """A cursor needs a transaction: in autocommit, one that ends with the last of the streams that share it."""
        if self.conn.autocommit and self.conn.info.transaction_status == TransactionStatus.IDLE:
            self._transaction.enter_context(self.conn.transaction())
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                self._transaction.close()
