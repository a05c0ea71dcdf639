"""llm_dataset_load_pairs: what becomes of a pair, what is cut and skipped, and what a model learns from such rows."""

import psycopg
import pytest

PAIRS = [("low lower", " newest"), ("low", " lowest"), ("newest newest newest", " low"), ("low", ""), ("", " lower low")]
LOAD = "SELECT llm_dataset_load_pairs('SELECT prompt, completion FROM pairs ORDER BY id', 'm'{})"
ROWS = "SELECT tokens, target FROM llm_dataset WHERE model = 'm' ORDER BY id"
COUNTED = "(SELECT count(*) FROM llm_dataset, unnest(target) AS t WHERE t <> -100)"


@pytest.fixture(scope="module", autouse=True)
def _model(module_conn):
    module_conn.execute("CREATE TABLE pairs (id integer GENERATED ALWAYS AS IDENTITY, prompt text, completion text)")
    for prompt, completion in PAIRS:
        module_conn.execute("INSERT INTO pairs (prompt, completion) VALUES (%s, %s)", [prompt, completion])
    module_conn.execute(
        "SELECT llm_train_bpe($$VALUES ('low lower newest')$$, 262, 'm'), llm_init_model('m', 1, 1, 4, 16)"
    )


@pytest.fixture(autouse=True)
def said(conn) -> list[str]:
    """NOTICEs of this test's session."""
    conn.execute("DELETE FROM llm_dataset")
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    return notices


def load(conn: psycopg.Connection, arguments: str = "") -> int:
    return conn.execute(LOAD.format(arguments)).fetchone()[0]


def test_loss_is_on_completion_and_end_of_text_only(conn, said):
    end = conn.execute("SELECT eos_token_id FROM llm_model_config WHERE model = 'm'").fetchone()[0]
    assert load(conn) == len(PAIRS)
    expected = []
    for prompt, completion in PAIRS:
        (first,), (ids,) = (
            conn.execute("SELECT llm_encode(%s, 'm')", [text]).fetchone() for text in (prompt, prompt + completion)
        )
        targets = [*ids[1:], end]
        hidden = max(0, len(first) - 1)
        expected.append((ids, [-100] * hidden + targets[hidden:]))
    assert conn.execute(ROWS).fetchall() == expected
    assert said == []
