"""Checkpoints in files: written whole or not at all, and taken only if they are what they say."""

import json
import zipfile

import psycopg
import pytest

from tests.server.checkpoints.steps import STATE, save, sqlstate, train


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_is_not_the_checkpoint_is_refused(sql, conn, model, server_files, suffix):
    path, other = server_files / f"a{suffix}", server_files / f"b{suffix}"
    one = save(sql, "m", "", str(path))
    save(sql, "m", "", str(other))
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "m"))
    train(sql, 1)
    two = save(sql, "m", "", str(server_files / f"c{suffix}"))
    now = sql(STATE, "m")
    whole = path.read_bytes()
    load = "SELECT llm_checkpoint_load('m', %s)"

    def refused(data: bytes) -> str | None:
        path.write_bytes(data)
        state, _ = sqlstate(conn, load, one)
        assert sql(STATE, "m") == now
        return state

    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        assert refused(whole[:cut]) in ("22P02", "22000")  # the last byte of a .npz is of its metadata
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    assert refused(bytes(flipped)) in ("22000", "22P02")
    assert refused((server_files / f"c{suffix}").read_bytes()) == "22000"  # of another moment
    sql(
        f"SELECT pg_llm_export_{'npz' if suffix == '.npz' else 'safetensors'}(%s, 'm')",
        str(server_files / f"d{suffix}"),
    )
    assert refused((server_files / f"d{suffix}").read_bytes()) == "22000"
    path.unlink()
    assert sqlstate(conn, load, one)[0] == "58P01"
    other.rename(path)  # the same state, saved twice
    assert sql(load, one) == 2
    assert sql(load, two) == 3
    for rest in server_files.glob(f"[a-d]{suffix}"):
        rest.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_checkpoint_takes_the_place_of_no_file(sql, conn, model, put, server_files, suffix):
    """It may be another database's checkpoint, or one of a transaction that was rolled back, which can be attached."""
    export = put(f"export{suffix}", b"of somebody")
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', file_path => %s)", export)[0] == "42710"
    assert (server_files / f"export{suffix}").read_bytes() == b"of somebody"
    assert sql("SELECT count(*) FROM llm_checkpoint") == 0
    path = put(f"undone{suffix}", b"")
    (server_files / f"undone{suffix}").unlink()
    with conn.transaction(force_rollback=True):
        save(sql, "m", "", path)
    before = (server_files / f"undone{suffix}").read_bytes()
    state, message = sqlstate(conn, "SELECT llm_checkpoint_save('m', file_path => %s)", path)
    assert state == "42710"
    assert "llm_checkpoint_attach" in message
    assert (server_files / f"undone{suffix}").read_bytes() == before
    assert not list(server_files.glob(".pg_gpt2-*"))
    sql("SELECT llm_checkpoint_load('m', llm_checkpoint_attach(%s))", path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_is_a_checkpoint_in_another_database_too(sql, new_database, server_files, suffix):
    """What the row held comes back from the file: without the database that wrote it nothing is lost."""
    step = "SELECT llm_train_step(%s, lr_max => 0.01)"
    data = "INSERT INTO llm_dataset (tokens, target) VALUES ('{1,2,3}', '{2,3,4}')"
    sql("SELECT llm_init_model('a', 1, 2, 64, 16, 20000)")  # wte in two blocks
    assert sql("SELECT count(*) FROM llm_param WHERE model = 'a' AND name = 'wte'") == 2
    sql(data)
    for trained in (False, True):
        if trained:
            sql(step, "a")
        path = server_files / f"moved{trained}{suffix}"
        save(sql, "a", "", str(path))
        state = sql(STATE, "a")
        with psycopg.connect(new_database(), autocommit=True) as elsewhere:

            def there(statement: str, *values: object, conn: psycopg.Connection = elsewhere) -> object:
                return conn.execute(statement, values).fetchone()[0]  # type: ignore[index]

            one = there("SELECT llm_checkpoint_attach(%s)", str(path))
            assert there("SELECT llm_checkpoint_load('a', %s)", one) == int(trained)
            assert there(STATE, "a") == state
            elsewhere.execute(data)
            following = there(step, "a")
            assert sqlstate(elsewhere, "SELECT llm_checkpoint_attach(%s)", str(path))[0] == "42710"
            path = path.rename(server_files / f"again{trained}{suffix}")
            two = there("SELECT llm_checkpoint_attach(%s, 'b')", str(path))
            assert there("SELECT llm_checkpoint_load('b', %s)", two) == int(trained)
            assert there(step, "b") == following
            assert sqlstate(elsewhere, "SELECT llm_checkpoint_load('a', %s)", one)[0] == "58P01"
            there("SELECT llm_checkpoint_load('b', %s)", two)
            assert there(STATE, "b") == state
        path.unlink()
    sql("SELECT llm_drop_model('a')")
    sql("DELETE FROM llm_dataset WHERE model IS NULL")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_only_a_whole_checkpoint_is_attached(sql, conn, model, server_files, suffix):
    path, attach = server_files / f"part{suffix}", "SELECT llm_checkpoint_attach(%s)"
    sql("SELECT llm_init_model('a', 1, 2, 8, 16, 50)")
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "a", "", str(path)))
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        assert sqlstate(conn, attach, str(path))[0] in ("22P02", "22000")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    assert sqlstate(conn, attach, str(path))[0] in ("22P02", "22000")
    sql(f"SELECT pg_llm_export_{suffix[1:]}(%s, 'a')", str(path))  # weights alone
    assert sqlstate(conn, attach, str(path))[0] == "22000"
    assert sql("SELECT count(*) FROM llm_checkpoint WHERE file_path IS NOT NULL") == 0
    sql("SELECT llm_drop_model('a')")
    path.unlink()


@pytest.mark.parametrize("user", ["adapter", "sharer"])
def test_a_file_of_another_shape_is_not_loaded_into_what_others_use(sql, conn, model, server_files, user):
    """The adapter, or what shares a tensor, would then be of no shape at all."""
    path, logits = server_files / "shape.npz", "SELECT llm_logits('{1,2}', 'user')"
    sql("SELECT llm_init_model('other', 1, 2, 16, 16, 60), llm_init_model('user', 2, 2, 16, 16, 50)")
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "other", "", str(path)))
    if user == "adapter":
        sql("SELECT llm_drop_model('user'), llm_adapter_create('user', 'm')")
    else:
        sql("SELECT llm_share_param('m', 'wte', NULL, 'user')")
    before, state = sql(logits), sql(STATE, "m")
    attached = sql("SELECT llm_checkpoint_attach(%s, 'm')", str(path))
    code, message = sqlstate(conn, "SELECT llm_checkpoint_load('m', %s)", attached)
    assert code == "2BP01"
    assert f'checkpoint {attached} is of another shape, and "m"' in message
    assert (sql(logits), sql(STATE, "m")) == (before, state)
    sql("SELECT llm_copy_model('m', 'copy', %s)", attached)
    if user == "sharer":  # of a tensor that is the same in both
        sql("SELECT llm_unshare_param('user', 'wte', NULL), llm_share_param('m', 'ln_f.bias', 0, 'user')")
        sql("SELECT llm_checkpoint_load('m', %s)", attached)
        sql(logits)
        sql("SELECT llm_unshare_param('user', 'ln_f.bias')")
    sql("SELECT llm_drop_model('user')")
    path.unlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_blocks_of_other_sizes_and_steps_are_attached_as_they_were(sql, model, server_files, suffix):
    path = server_files / f"other{suffix}"  # of a model whose wte was split by hand
    sql("UPDATE llm_param SET step = step + 1 WHERE model = 'm' AND name = 'wpe'")
    sql("UPDATE llm_param SET m = NULL WHERE model = 'm' AND name = 'wte' AND token_id > 0")
    state = sql(STATE, "m")
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "m", "", str(path)))
    attached = sql("SELECT llm_checkpoint_attach(%s, 'twin')", str(path))
    sql("SELECT llm_checkpoint_load('twin', %s)", attached)
    assert sql(STATE, "twin") == state
    sql("SELECT llm_drop_model('twin')")
    path.unlink()


def test_a_file_is_written_whole_or_not_at_all(sql, conn, model, server_files):
    path, before = server_files / "there.npz", {*server_files.iterdir()}
    one = save(sql, "m", "", str(path))
    kept = path.read_bytes()
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", str(path))[0] == "42710"
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", f"{server_files}/../files/there.npz")[0] == "42710"
    assert path.read_bytes() == kept
    conn.execute("SET statement_timeout = '1ms'")
    assert sqlstate(conn, "SELECT llm_checkpoint_save('m', '', %s)", str(server_files / "cut.npz"))[0] == "57014"
    conn.execute("RESET statement_timeout")
    assert sql("SELECT count(*) FROM llm_checkpoint") == 1
    assert {*server_files.iterdir()} == {*before, path}
    sql("SELECT llm_checkpoint_drop(%s)", one)
    assert path.exists()
    path.unlink()


def test_files_are_for_the_roles_that_may_touch_them(sql, conn, model, server_files):
    path = server_files / "role.npz"
    one = save(sql, "m", "", str(path))
    sql("CREATE ROLE trainer")
    sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO trainer")
    sql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO trainer")
    try:
        sql("SET ROLE trainer")
        two = save(sql, "m")
        assert sql("SELECT llm_checkpoint_load('m', %s)", two) == 2
        for statement in (
            f"SELECT llm_checkpoint_save('m', '', '{server_files}/x.npz')",
            f"SELECT llm_checkpoint_load('m', {one})",
            f"SELECT llm_copy_model('m', 'x', {one})",
        ):
            assert sqlstate(conn, statement)[0] == "42501"
        sql("RESET ROLE")
        sql("GRANT pg_read_server_files TO trainer")
        sql("SET ROLE trainer")
        assert sql("SELECT llm_checkpoint_load('m', %s)", one) == 2
    finally:
        sql("RESET ROLE")
        sql("DROP OWNED BY trainer")
        sql("DROP ROLE trainer")
        path.unlink()


def with_metadata(path, **changed):
    """The file with other words in its metadata."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = json.dumps(json.loads(archive.comment) | changed).encode()


@pytest.mark.parametrize(
    "changed",
    [
        *({"n_head": value} for value in ("4", "x", "")),
        *({"pg_gpt2.step": value} for value in ("-1", "x", "9" * 4000, "9" * 5000)),
        *({"pg_gpt2.blocks": value} for value in ("", "[]", "null", "7", "[" * 20_000, '{"wte": 1' + "0" * 5000 + "}")),
        *(
            {"pg_gpt2.blocks": f'{{"wte": [{row}]}}'}
            for row in ('[0, 50, -1, ""]', '[0, 50.0, 2, ""]', '[0, 50, "2", "mv"]')
        ),
        *(
            {"pg_gpt2.blocks": f'{{"wte": {rows}}}'}
            for rows in ('[[0, 4611686018427387904, 2, ""]]', "[[]]", "[null]", "7")
        ),
        *({"pg_gpt2.config": value} for value in ("", "[]", "{}", "null", "[" * 20_000)),
        {"pg_gpt2.config": '{"n_layer": 2, "n_head": 4, "d_model": 16, "n_positions": 16, "vocab": 50}'},
        {"pg_gpt2.config": '{"n_layer": 2000, "n_head": 1, "d_model": 1, "n_positions": 1, "vocab": 1}'},
        {"pg_gpt2.sha256": ""},
        *({"pg_gpt2.model": name} for name in ("\ud800", "a\0b", "")),
    ],
)
def test_a_file_with_other_metadata_is_not_attached(sql, conn, model, server_files, changed):
    path = server_files / "metadata.npz"
    sql("SELECT llm_checkpoint_drop(%s)", save(sql, "m", "", str(path)))
    with_metadata(path, **changed)
    try:
        with pytest.raises(psycopg.Error) as caught:
            sql("SELECT llm_checkpoint_attach(%s)", str(path))
        assert (caught.value.sqlstate, bool(caught.value.diag.message_hint)) in (("22000", True), ("22P02", True))
    finally:
        path.unlink()


@pytest.mark.parametrize(("field", "value"), [("n_head", 4), ("eos_token_id", 7), ("n_head", 1)])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_row_that_contradicts_its_file_is_refused(sql, conn, model, server_files, field, value, suffix):
    """Weights of two heads have the shapes of those of four, and give something else."""
    path = server_files / f"contradicted{suffix}"
    one = save(sql, "m", "", str(path))
    sql("UPDATE llm_checkpoint SET config = config || jsonb_build_object(%s::text, %s::integer)", field, value)
    try:
        assert sqlstate(conn, "SELECT llm_checkpoint_load('m', %s)", one)[0] == "22000"
        assert sqlstate(conn, "SELECT llm_copy_model('m', 'q', %s)", one)[0] == "22000"
    finally:
        path.unlink()
