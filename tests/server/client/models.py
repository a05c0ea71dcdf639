"""The model that the tests of the client use, and what they ask it."""

MODEL = "tiny"
PROMPT = "The tables are"
TEXT = (
    "The tables are the truth, memory is a cache of a version, arithmetic is BLAS on that cache. Größe, naïve, 日本. "
)


def make_model(conn, schema="public"):
    """A model of 2 layers with a vocabulary of 300 tokens."""
    with conn.transaction():
        conn.execute(f'SET LOCAL search_path = "{schema}"')
        conn.execute("SELECT llm_train_bpe(%s, 300, %s)", [f"SELECT '{TEXT * 5}'", MODEL])
        conn.execute("SELECT llm_init_model(%s, 2, 2, 32, 64, 300, 7)", [MODEL])
        # freshly drawn weights are too small to tell one prompt from another
        conn.execute("SELECT llm_dataset_load(%s, %s, 32)", [f"SELECT '{TEXT * 20}'", MODEL])
        conn.execute("SELECT llm_train(%s, 10, dropout_p => 0, lr_max => 1e-2, log_every => 0)", [MODEL])


def first_value(conn, query, **arguments):
    """The first value of the first row of SELECT `query`."""
    return conn.execute(f"SELECT {query}", arguments).fetchone()[0]
