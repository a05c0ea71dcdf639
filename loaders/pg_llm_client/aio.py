"""The client for an asynchronous connection. build.py makes client.py of it, for an ordinary connection."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .generation_options import BEAM_KEYS, BatchOptions, BeamOptions, GenerationOptions, JsonOptions, ManyOptions
from .names import (
    BatchKeywords,
    BeamKeywords,
    GenerateKeywords,
    JsonKeywords,
    ManyKeywords,
    SamplingKeywords,
    of_beams,
    takes,
)
from .options import AdapterOptions, PairOptions, TrainOptions
from .results import (
    BatchText,
    Beam,
    Choice,
    ChoiceEvaluation,
    ChosenRow,
    EmbeddingRow,
    PerplexityRow,
    StreamEvent,
    TextRow,
    evaluation_of,
)
from .statements import FIND_SCHEMA, Statement, Statements, arguments, cursor_name, several
from .training import progress_bar, split

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
ROWS = 16  # of results of many rows that are fetched at a time


class AsyncPGLLMClient:
    """Generation, scoring and training by the pg_gpt2 of a database.

    `conn` is the caller's: it stays open, and no method commits what the caller began. `model` is the model for calls
    that name none; None leaves the choice to the server (setting `pg_gpt2.model`, else gpt2-small, else the only model that
    has weights). Errors are psycopg's.

    >>> client = AsyncPGLLMClient(await psycopg.AsyncConnection.connect("dbname=llm"), model="demo")
    >>> await client.generate("The database", max_tokens=20, seed=1)
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any], *, model: str | None = None) -> None:
        kind = psycopg.AsyncConnection
        if not isinstance(conn, kind):  # such as one of the other kind, or what was not awaited
            raise TypeError(f"{type(self).__name__} takes psycopg's {kind.__name__}, not a {type(conn).__name__}")
        self.conn = conn
        self.model = model
        self._found: Statements | None = None
        self._streams = 0
        self._transaction = AsyncExitStack()

    @takes(GenerationOptions)
    async def generate(self, prompt: str, **options: Unpack[GenerateKeywords]) -> str:
        """Continue `prompt`: prompt and completion, or with `echo=False` the completion.

        temperature 0 is greedy; topk 0, topp 1 and min_p 0 keep all tokens; eos_token None = the model's, -1 = none.
        The same seed gives the same text. Hugging Face's names are taken as well: max_new_tokens, top_k, top_p, do_sample,
        and num_beams, which above 1 makes this the best continuation that `beam_search` finds.
        """
        if "num_beams" in options:
            best = (await self.beam_search(prompt, **of_beams(options)))[0].text or ""
            return prompt + best if options.get("echo", True) else best
        return await self._value("llm_generate", prompt=prompt, **arguments(options, self.model))

    @takes(GenerationOptions)
    def stream(
        self, prompt: str | None = None, *, prompt_ids: Sequence[int] | None = None, **options: Unpack[SamplingKeywords]
    ) -> AsyncGenerator[StreamEvent, None]:
        """Continue `prompt`, or `prompt_ids`, one event a token, each as soon as it is computed. Options are those of `generate`.

        Closing the iterator ends the work: `contextlib.aclosing` does it at the end of a block, a bare `break` when Python
        collects the iterator. On an autocommit connection a transaction is open while streams are; what else is done on
        the connection meanwhile is part of it, and committed at its end.
        """
        ids = {} if prompt_ids is None else {"prompt_ids": [*prompt_ids]}
        given = arguments({**options, **ids}, self.model)
        return self._streamed(StreamEvent, 1, "llm_generate_stream", prompt=prompt, **given)

    @takes(ManyOptions)
    async def generate_batch(self, prompts: Sequence[str], **options: Unpack[ManyKeywords]) -> list[str]:
        """Continue several prompts at once, faster than one after another; prompt n (from 0) draws with seed + n.

        With `n` there are so many texts for each prompt, one after the other, each by the next seed.
        """
        return [each.text for each in await self.generate_texts(prompts, **options)]

    @takes(BatchOptions)
    async def generate_texts(
        self,
        prompts: Sequence[str] | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        **options: Unpack[BatchKeywords],
    ) -> list[BatchText]:
        """What `generate_batch` gives, how each text ended, and how many tokens it has; `logprobs` asks for its probability.

        `prompt_ids`, in the place of `prompts`, are one prompt.
        """
        ids = {} if prompt_ids is None else {"prompt_ids": [*prompt_ids]}
        given = arguments({**options, **ids}, self.model)
        rows = await self._rows("llm_generate_batch", prompts=None if prompts is None else several(prompts), **given)
        return sorted((BatchText(*row) for row in rows), key=lambda each: (each.n, each.sample))

    @takes(ManyOptions)
    def generate_rows(self, source: str, **options: Unpack[ManyKeywords]) -> AsyncGenerator[TextRow, None]:
        """Continue the prompts of `source`, a query of two columns, a key and a prompt: rows in its order, as they are computed.

        Row p (from 0) draws with seed + p, or with `n` texts for each prompt with seed + p n and the following ones. Closing
        the iterator ends the work; transactions are as with `stream`.
        """
        given = arguments(options, self.model)
        return self._streamed(TextRow, 1, "llm_generate_rows", source=source, **given)

    def perplexity_rows(
        self, source: str, *, model: str | None = None, from_start: bool = False
    ) -> AsyncGenerator[PerplexityRow, None]:
        """`perplexity` of each text of `source`, a query of two columns, a key and a text, faster than one after another."""
        given = {"model_name": model or self.model, "from_start": from_start}
        return self._streamed(PerplexityRow, ROWS, "llm_perplexity_rows", source=source, **given)

    def embedding_rows(
        self, source: str, *, layer: int | None = None, pooling: str = "mean", model: str | None = None
    ) -> AsyncGenerator[EmbeddingRow, None]:
        """`embed` of each text of `source`, a query of two columns, a key and a text, faster than one after another."""
        given = {"layer": layer, "pooling": pooling, "model_name": model or self.model}
        return self._streamed(EmbeddingRow, ROWS, "llm_embedding_rows", source=source, **given)

    async def cosine(self, a: Sequence[float], b: Sequence[float]) -> float | None:
        """The cosine of the angle between two embeddings; NaN where one of them is zero."""
        return await self._value("llm_cosine", a=[*map(float, a)], b=[*map(float, b)])

    @takes(JsonOptions)
    async def generate_json(
        self, prompt: str, schema: Mapping[str, Any] | type[Any], **options: Unpack[JsonKeywords]
    ) -> Any:
        """Continue `prompt` with JSON that is valid under a JSON schema, as the value that it stands for.

        `schema` is a mapping, or a class that has a model_json_schema(), as those of Pydantic do. What a schema may say is in the
        documentation; a keyword that the server cannot hold is an error.
        """
        described = schema.model_json_schema() if isinstance(schema, type) else schema
        given = arguments(options, self.model)
        return await self._value("llm_generate_json", prompt=prompt, schema=json.dumps(described), **given)

    @takes(BeamOptions)
    async def beam_search(self, prompt: str | None = None, **options: Unpack[BeamKeywords]) -> list[Beam]:
        """The `beam_width` best continuations of a prompt, or of `prompt_ids`, best first, as Hugging Face finds them."""
        given = {"beam_width": 3, **arguments(options, self.model, BEAM_KEYS)}
        return [Beam(*row) for row in await self._rows("llm_beam_search", prompt=prompt, **given)]

    async def embed(
        self, text: str, *, layer: int | None = None, pooling: str = "mean", model: str | None = None
    ) -> list[float] | None:
        """The hidden state of a text, d_model numbers, after `layer` blocks (None = all): the mean over its tokens, or with
        pooling='last' that of the last one. None for an empty text."""
        given = {"layer": layer, "pooling": pooling, "model_name": model or self.model}
        return await self._value("llm_text_embedding", text_in=text, **given)

    async def perplexity(self, text: str, *, model: str | None = None, from_start: bool = False) -> float | None:
        """The perplexity of a text. It takes at least two tokens, with `from_start` one; None for a shorter text.

        With `from_start` the first token is scored as well, as the one that follows an end-of-text token.
        """
        given = {"model_name": model or self.model, "from_start": from_start}
        return await self._value("llm_perplexity", text_in=text, **given)

    async def choose(
        self, prompt: str, choices: Sequence[str], *, normalize: str = "none", model: str | None = None
    ) -> list[Choice]:
        """The choices in the order in which the model expects them to follow `prompt`, best first.

        `normalize` says what is compared: 'none' log-probabilities, 'tokens' and 'bytes' those divided by a choice's length,
        'prior' those less what the choice has at the beginning of a text.
        """
        given = {
            "prompt": prompt,
            "choices": several(choices),
            "normalize": normalize,
            "model_name": model or self.model,
        }
        return [Choice(*row) for row in await self._rows("llm_choose", **given)]

    async def classify(
        self, prompt: str, choices: Sequence[str], *, normalize: str = "none", model: str | None = None
    ) -> str | None:
        """The first of what `choose` gives; None of no choices."""
        given = {
            "prompt": prompt,
            "choices": several(choices),
            "normalize": normalize,
            "model_name": model or self.model,
        }
        return await self._value("llm_classify", **given)

    async def choose_from(
        self, prompt: str, source: str, *, normalize: str = "none", model: str | None = None
    ) -> list[Choice]:
        """As `choose`, among the rows of a query of one text column, such as 'SELECT name FROM label'."""
        given = {"prompt": prompt, "source": source, "normalize": normalize, "model_name": model or self.model}
        return [Choice(*row) for row in await self._rows("llm_choose_from", **given)]

    def choose_rows(
        self, source: str, choices: Sequence[str], *, normalize: str = "none", model: str | None = None
    ) -> AsyncGenerator[ChosenRow, None]:
        """What `classify` gives for each prompt of `source`, a query of two columns, a key and a prompt, in its order.

        Several share a pass of the model, and what they begin with in common is processed once.
        """
        given = {"choices": several(choices), "normalize": normalize, "model_name": model or self.model}
        return self._streamed(ChosenRow, ROWS, "llm_choose_rows", source=source, **given)

    async def evaluate_choices(
        self, source: str, choices: Sequence[str] | None = None, *, normalize: str = "none", model: str | None = None
    ) -> ChoiceEvaluation:
        """How often the model chooses what is expected.

        `source` is a query of two columns, a prompt and its answer, or of three: the last is an array, the choices of that row,
        which go before `choices`. NOTICEs say which rows were skipped, and which count as wrong for want of a result.
        """
        given = {"choices": choices and several(choices), "normalize": normalize, "model_name": model or self.model}
        statement = (await self._statements()).evaluation("llm_evaluate_choices", source=source, **given)
        return evaluation_of(await self._fetch(statement))

    async def load_pairs(
        self, source: str, *, model: str | None = None, max_length: int | None = None, **options: Unpack[PairOptions]
    ) -> int:
        """Load pairs to train on, one a row of llm_dataset; the number of rows.

        `source` is a query of two columns, prompt and completion, such as 'SELECT question, answer FROM faq', or of three: the
        last is a weight. Only completions carry loss. `split`, `val_fraction`, `replace` and `special` are those
        of llm_dataset_load_pairs; NOTICEs say what was cut or skipped.
        """
        given = {"source": source, "model": model or self.model, "max_length": max_length, **options}
        return await self._value("llm_dataset_load_pairs", **given)

    async def create_adapter(self, name: str, *, base: str | None = None, **options: Unpack[AdapterOptions]) -> None:
        """Make an adapter of `base`, else of the client's model: a model called `name`, whose training leaves the base as it is.

        The options are those of llm_adapter_create. `model=name` then generates, chooses and trains.
        """
        await self._value("llm_adapter_create", model=name, base=base or self.model, **options)

    async def merge_adapter(self, name: str, target: str) -> None:
        """Make an ordinary model, `target`, of an adapter and its base."""
        await self._value("llm_adapter_merge", model=name, target=target)

    async def train(
        self,
        n_steps: int,
        *,
        model: str | None = None,
        commit_every: int | None = None,
        progress: bool | None = None,
        **options: Unpack[TrainOptions],
    ) -> int:
        """Train for `n_steps` AdamW steps; the run_id under which the server logged them.

        The data are the rows of llm_dataset; `source`, a query of one text column such as 'SELECT body FROM posts', is
        first tokenized into blocks of `block_size`, `val_fraction` of which are for validation. Other options are those of
        llm_train, by its names. `progress` shows a bar: None = on a terminal only.

        All is one transaction, which on a connection that is not in autocommit mode is the caller's to commit. With
        `commit_every`, for long runs in autocommit mode, the server commits as it goes (llm_train_run), and the same call
        resumes a run that was cut short.
        """
        data, training = split(options, commit_every)
        model = model or self.model
        call = {"model": model, "n_steps": n_steps, **training}
        if commit_every is not None:
            statements = await self._statements()
            with progress_bar(self.conn, n_steps, model, progress):
                await self._execute(statements.procedure("llm_train_run", commit_every=commit_every, **call))
            return (await self._fetch(statements.ended_run(model)))[0][0]
        async with self.conn.transaction() if self.conn.autocommit else nullcontext():
            if data:
                await self._value("llm_dataset_load", model=model, **data)
            with progress_bar(self.conn, n_steps, model, progress):
                return await self._value("llm_train", **call)

    # ---- how statements are run: never prepared, since behind a pooler the next one may meet another session, and with cursors
    # of psycopg's own, since those that the connection makes may be of another kind (dict_row, RawCursor)

    async def _statements(self) -> Statements:
        if self._found is None:
            async with psycopg.AsyncCursor(self.conn, row_factory=tuple_row) as cursor:
                found = await (await cursor.execute(FIND_SCHEMA, prepare=False)).fetchone()
            self._found = Statements(found, self.conn.info.dbname)
        return self._found

    async def _value(self, function: str, **given: Any) -> Any:
        return (await self._fetch((await self._statements()).value(function, **given)))[0][0]

    async def _rows(self, function: str, **given: Any) -> list[tuple[Any, ...]]:
        return await self._fetch((await self._statements()).rows(function, **given))

    async def _streamed(self, make: type[T], size: int, function: str, **given: Any) -> AsyncGenerator[T, None]:
        """What `make` makes of the rows as they are computed, `size` of them fetched at a time."""
        statement = (await self._statements()).stream(function, **given)
        opened = psycopg.AsyncServerCursor(self.conn, cursor_name(), row_factory=tuple_row)
        async with self._transaction_of_streams(), opened as cursor:
            await cursor.execute(*statement)
            more = True
            while more:  # no `for`: in psycopg 3.3.0 that ends after the first rows, without an error
                rows = await cursor.fetchmany(size)
                for row in rows:
                    yield make(*row)
                more = len(rows) == size

    async def _fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        async with psycopg.AsyncCursor(self.conn, row_factory=tuple_row) as cursor:
            return await (await cursor.execute(*statement, prepare=False)).fetchall()

    async def _execute(self, statement: Statement) -> None:
        async with psycopg.AsyncCursor(self.conn, row_factory=tuple_row) as cursor:
            await cursor.execute(*statement, prepare=False)

    @asynccontextmanager
    async def _transaction_of_streams(self) -> AsyncIterator[None]:
        """A cursor needs a transaction: in autocommit, one that ends with the last of the streams that share it."""
        if self.conn.autocommit and self.conn.info.transaction_status == TransactionStatus.IDLE:
            await self._transaction.enter_async_context(self.conn.transaction())
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                await self._transaction.aclose()
