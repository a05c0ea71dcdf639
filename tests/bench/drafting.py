"""Rows about draft models: what one is worth whose tokens come true at a set rate, and a pair of models of which one ships."""

from functools import partial
from typing import Any

from harness import Bench, us
from ours import Session
from shapes import XL, Shape
from targets import UNDRAFTED

NEW_TOKENS, ACCEPTED = 128, 0.7
DRAFT = "bench_draft"
SHIPPED, PUPIL = "postgresql-docs", "bench_pupil"
PUPIL_SHAPE = Shape(n_layer=1, n_head=4, d_model=128, n_positions=256, vocab=4096)  # 0.76 million weights
PROMPTS = ("The planner", "To restore a backup,", "If two transactions update the same row,", "CREATE TABLE")
WRITTEN = 200  # tokens of a text from which the pupil learns


def small(shape: Shape) -> Shape:
    """A draft for a model: of gpt2-small, with an eighth of its weights."""
    d = max(32, shape.d_model // 3)
    return Shape(max(1, shape.n_layer // 6), max(1, d // 64), d, shape.n_positions, shape.vocab)


def at_a_rate(bench: Bench) -> None:
    """Random weights agree about nothing. So the draft's passes are made, and in the place of what they give stands the token
    that will come, or with probability 1 - ACCEPTED another."""
    server, shape = bench.server, bench.shape
    if DRAFT not in {name for (name,) in server.main.conn.execute("SELECT model FROM llm_model_config")}:
        server.init_model(DRAFT, small(shape))
    what = (
        f"decode with a draft of {small(shape).n_params / shape.n_params:.0%} of its weights, {ACCEPTED:.0%} accepted"
    )
    row = bench.row("draft", what, "tokens/s", NEW_TOKENS, rate=True)
    ids = bench.ids(32)
    with server.plain_session() as plain, server.plain_session() as drafting:
        true = plain.generate(ids, NEW_TOKENS)
        drafting.generate(ids, 9, draft=DRAFT)  # what drafting needs is loaded, and then changed
        drafting.probe("drafts_come_true", true, len(ids), ACCEPTED)
        drafting.probe("drafting")
        parties = [
            us(partial(drafting.generate, ids, NEW_TOKENS, draft=DRAFT)),
            (UNDRAFTED, partial(plain.generate, ids, NEW_TOKENS)),
        ]
        ours, theirs = bench.compare(row, 0, parties)
        bench.check("draft: same ids as without", ours == theirs == true)
        told = drafting.probe("drafting")
    bench.notes["draft: tokens accepted of those drafted, passes"] = told
    large, little = XL.decode_bytes(), Shape().decode_bytes()
    bench.notes[f"gpt2-xl with gpt2-small at {ACCEPTED:.0%}, calculated"] = (
        f"{promise(ACCEPTED, little / large):.2f} times plain"
    )


def promise(chance: float, share: float, a_row: float = 0.05) -> float:
    """Tokens in the time of a plain one, with drafts of the best length: `chance` that a token comes true, `share` of the model's
    time that the draft takes for one, and what each further row of a pass adds to its time."""
    return max(sum(chance**n for n in range(size + 1)) / (1 + (a_row + share) * size) for size in range(1, 16))


def pair(bench: Bench) -> None:
    """The model that ships, and a draft that has learned from what that writes; greedy, and drawn at temperature 1."""
    prepare_pair(bench)
    count = len(PROMPTS) * NEW_TOKENS
    with bench.server.plain_session() as plain, bench.server.plain_session() as drafting:
        prompts = [plain.value("SELECT llm_encode(%s, %s)", text, SHIPPED) for text in PROMPTS]
        drafting.generate(prompts[0], 9, SHIPPED, draft=PUPIL)
        plain.generate(prompts[0], 9, SHIPPED)
        drafting.probe("drafting")
        for temperature, key in ((0.0, "draft pair"), (1.0, "draft pair sampled")):
            what = f"{len(PROMPTS)} texts of the shipped model with a draft, temperature {temperature:g}"
            row = bench.row(key, what, "tokens/s", count, rate=True)

            def write(session: Session, draft: str | None, temperature: float = temperature) -> list[list[int]]:
                made = partial(session.generate, draft=draft, temperature=temperature)
                return [made(ids, NEW_TOKENS, SHIPPED) for ids in prompts]

            ours, theirs = bench.compare(
                row, 0, [us(partial(write, drafting, PUPIL)), (UNDRAFTED, partial(write, plain, None))]
            )
            bench.check(f"{key}: same ids as without", ours == theirs)
            bench.notes[f"{key}: tokens accepted of those drafted, passes"] = drafting.probe("drafting")


def prepare_pair(bench: Bench) -> None:
    """Load the model that ships, let it write, and train a draft on that."""
    main, known = bench.server.main, "SELECT EXISTS (SELECT FROM llm_model_config WHERE model = %s)"
    if main.value(known, PUPIL):
        return
    bench.server.load_shipped(SHIPPED)
    main.conn.execute(
        "CREATE TABLE bench_written AS SELECT text FROM"
        f" llm_generate_rows('SELECT i, '''' FROM generate_series(1, {bench.length.draft_texts}) AS i', {WRITTEN},"
        f" model_name => '{SHIPPED}', eos_token => -1, seed => 1)"
    )
    bench.server.init_model(PUPIL, PUPIL_SHAPE)
    main.value("SELECT llm_dataset_load('SELECT text FROM bench_written', %s, 256)", SHIPPED)
    main.conn.execute("UPDATE llm_dataset SET model = %s WHERE model = %s", (PUPIL, SHIPPED))
    options: dict[str, Any] = {"batch_size": 8, "lr_max": 4e-3, "dropout_p": 0.0, "beta2": 0.99, "audit": "none"}
    seconds, _ = main.train(PUPIL, bench.length.draft_steps, **options)
    bench.notes["the draft of the shipped model"] = (
        f"{PUPIL_SHAPE.n_params:,} weights, {bench.length.draft_steps} steps in {seconds:.0f} s"
        f" on {bench.length.draft_texts} texts that the model wrote"
    )
