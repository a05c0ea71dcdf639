"""What ops promise beyond their values: errors that name the op, the same bits on any thread count, sane extremes."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
from pg_gpt2.core import rng
from pg_gpt2.core.op import Op
from pg_gpt2.errors import InvalidParameter, UndefinedObject
from pg_gpt2.fast import activations, blas, buffers, threads
from pg_gpt2.fast.attend import attend
from pg_gpt2.fast.ops import lookup, registry
from pg_gpt2.fast.products import product

from tests.engine.arithmetic import bytes_of, gradients_of


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.fixture
def any_thread_count() -> Iterator[None]:
    before = threads.threads()
    yield
    threads.set_threads(before)


BIG = {  # large enough that each is cut into several pieces
    "matmul": ([(500, 300), (300, 700)], {}),
    "add": ([(700, 768), (768,)], {}),
    "mul": ([(700, 768), (700, 768)], {}),
    "scale": ([(700, 768)], {"factor": 0.3}),
    **{name: ([(700, 768)], {}) for name in activations.INTO},
    "softmax": ([(700, 768)], {}),
    "layernorm": ([(700, 768), (768,), (768,)], {}),
    "linear": ([(700, 256), (256, 1024), (1024,)], {}),
    "mlp": ([(300, 128), (128, 512), (512,), (512, 128), (128,)], {}),
    "causal_attention": ([(3, 150, 192)], {"n_head": 4, "p": 0.1, "seed": 3}),
    "attention": ([(150, 64), (64, 192), (192,), (64, 64), (64,)], {"n_head": 4}),
    "lm_head_loss": ([(600, 32), (9000, 32)], {"target": np.arange(600)}),
    "dropout": ([(700, 768)], {"p": 0.1, "seed": 3}),
    "embedding": ([(50, 16)], {"ids": np.arange(3000) % 47}),
}


@pytest.mark.usefixtures("any_thread_count")
@pytest.mark.parametrize("name", BIG)
def test_bits_do_not_depend_on_the_number_of_threads(name: str) -> None:
    shapes, attrs = BIG[name]
    arrays, op = [normal(*shape, seed=i) for i, shape in enumerate(shapes)], registry[name]
    results = []
    for count in (1, 2, 3):
        threads.set_threads(count)
        y = op(*arrays, **attrs)
        dy = np.asarray(normal(*y.shape, seed=9), np.float32)
        results.append([y, *gradients_of(op, dy, *arrays, **attrs)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("any_thread_count")
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("t", [130, 192, 333])
@pytest.mark.parametrize("chunk", [8, 50, 64, 200, 2000])
def test_attention_in_small_products(p: float, t: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where BLAS has kernels for small matrices, large products are cut into such; here those above 20,000."""
    monkeypatch.setattr(importlib.import_module("pg_gpt2.fast.attend"), "_small", lambda: 20_000)
    op, attrs = registry["causal_attention"], {"n_head": 2, "chunk": chunk, "p": p, "seed": 3}
    qkv, dy = normal(3, t, 48), normal(3, t, 16, seed=1)
    results = []
    for count in (1, 2):
        threads.set_threads(count)
        results.append((op(qkv, **attrs), *gradients_of(op, dy, qkv, **attrs)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    exact = (op(qkv.astype(float), **attrs), *gradients_of(op, dy.astype(float), qkv.astype(float), **attrs))
    for a, b in zip(results[0], exact, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "shapes", "attrs"),
    [
        ("matmul", [(2, 3), (4, 5)], {}),
        ("matmul", [(2, 2, 3), (3, 3, 5)], {}),
        ("matmul", [(3,), (3, 5)], {}),
        ("add", [(2, 3), (2,)], {}),
        ("mul", [(2, 3), (4, 3)], {}),
        ("linear", [(2, 3), (3, 4), (3,)], {}),
        ("layernorm", [(2, 3), (2,), (3,)], {}),
        ("causal_attention", [(2, 9)], {"n_head": 2}),
        ("attention", [(2, 4), (4, 12), (12,), (4, 4), (4,)], {"n_head": 3}),
        ("embedding", [(2, 3)], {"ids": [2]}),
        ("embedding", [(2, 3)], {"ids": [-1]}),
        ("embedding", [(2, 3)], {"ids": [0.5]}),
        ("cross_entropy", [(2, 3)], {"target": [0, 3]}),
        ("cross_entropy", [(2, 3)], {"target": [0]}),
        ("lm_head_loss", [(2, 3), (5, 4)], {"target": [0, 1]}),
        ("cross_entropy", [(2, 3)], {"target": [0, -1]}),
        ("cross_entropy", [(2, 3)], {"target": [0, -101]}),
        ("cross_entropy", [(2, 3)], {"target": [0, 1], "weight": [1]}),
        ("cross_entropy", [(2, 3)], {"target": [0, 1], "weight": 1}),
        ("cross_entropy", [(2, 3)], {"target": [0, 1], "weight": [1, 0]}),
        ("lm_head_loss", [(2, 3), (5, 3)], {"target": [0, 1], "weight": [1, float("nan")]}),
        ("lm_head_loss", [(2, 3), (5, 3)], {"target": [0, 1], "weight": [[1], [2]]}),
        ("embedding", [(2, 3)], {"ids": [-100]}),
        ("dropout", [(2, 3)], {"p": 1.0}),
        ("dropout", [(2, 3)], {"p": float("nan")}),
        ("transpose", [(3,)], {}),
        ("transpose", [(2, 3)], {"axes": [0, 0]}),
        ("reshape", [(2, 3)], {"shape": [4, 2]}),
        ("slice", [(2, 3)], {"axis": 1, "start": 1, "stop": 4}),
        ("slice", [(2, 3)], {"axis": 2, "start": 0, "stop": 1}),
        ("concat", [(2, 3), (3, 3)], {"axis": 1}),
        ("sum", [(2, 3)], {"axis": 2}),
        ("gelu", [(2, 3), (2, 3)], {}),
        ("scale", [(2, 3)], {}),
        ("scale", [(2, 3)], {"factor": 2.0, "bogus": 1}),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_op(name: str, shapes: list[tuple[int, ...]], attrs: dict) -> None:
    with pytest.raises(InvalidParameter, match=name if name != "dropout" else "dropout probability"):
        registry[name](*(normal(*shape) for shape in shapes), **attrs)


def test_unknown_op_lists_the_known_ones() -> None:
    with pytest.raises(UndefinedObject, match="conv2d") as error:
        lookup("conv2d")
    assert "softmax" in (error.value.hint or "")


def test_an_embedding_of_no_ids_has_no_rows_and_a_gradient_of_zeros() -> None:
    found, table = lookup("embedding"), normal(5, 4)
    y = found(table, ids=[])
    assert y.shape == (0, 4)
    (gradient,) = gradients_of(found, np.ones_like(y), table, ids=[])
    assert not gradient.any()


def test_a_defect_inside_an_op_is_not_blamed_on_the_caller() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        return len(1)  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        Op("broken", broken, lambda *a: (), ("x",))(normal(2))


def test_softmax_of_large_and_masked_scores() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4], [0, -np.inf, 0], [1e38, -1e38, 1e38]], np.float32)
    y = registry["softmax"](x)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(y[1:], [[0.5, 0, 0.5], [0.5, 0, 0.5]], atol=1e-7)


def test_losses_of_large_logits_are_finite() -> None:
    x = np.array([[300.0, 0], [0, 300.0]], np.float32)
    wte = np.array([[10.0, 0], [0, 10.0], [-5, -5]], np.float32)
    assert registry["lm_head_loss"](x, wte, target=[0, 1]) == 0
    assert registry["lm_head_loss"](x, wte, target=[1, 0]) == 3000
    assert registry["cross_entropy"](x @ wte.T, target=[1, 0]) == 3000


def test_nan_propagates() -> None:
    x = np.full((2, 6), np.nan, np.float32)
    assert np.isnan(registry["softmax"](x)).all()
    assert np.isnan(registry["causal_attention"](x, n_head=1)).all()


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1), (129, 770), (2, 70_001)])
def test_loss_head_equals_cross_entropy_of_logits(shape: tuple[int, ...]) -> None:
    x = normal(*shape[:-1], 4) if len(shape) > 2 else normal(shape[0], 4)
    wte = normal(shape[-1], 4, seed=1)
    target = np.random.default_rng(0).integers(0, shape[-1], x.shape[:-1])
    expected = registry["cross_entropy"](x @ wte.T, target=target)
    np.testing.assert_allclose(registry["lm_head_loss"](x, wte, target=target), expected, rtol=2e-6)


def test_loss_head_of_logits_whose_exponentials_overflow_or_vanish() -> None:
    x, wte, target = normal(6, 8), normal(40, 8, seed=1), np.arange(6) * 5
    x[0] *= 300.0
    x[1:3] = 50.0 * wte[[7, 10]]  # the logit of 10 is far above all others: a loss of 0 for row 2
    wte[:, 0] = -np.abs(wte[:, 0])
    x[3, 0] = 400.0
    op, dy = registry["lm_head_loss"], np.float32(1.0)
    logits = x @ wte.T
    np.testing.assert_allclose(op(x, wte, target=target), registry["cross_entropy"](logits, target=target), rtol=1e-5)
    (d_logits,) = gradients_of(registry["cross_entropy"], dy, logits, target=target)
    dx, dwte = gradients_of(op, dy, x, wte, target=target)
    np.testing.assert_allclose(dx, d_logits @ wte, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dwte, d_logits.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_attention_does_not_depend_on_the_chunk_beyond_rounding(chunk: int) -> None:
    qkv, dy = normal(2, 150, 96), normal(2, 150, 32)
    op, attrs = registry["causal_attention"], {"n_head": 2, "p": 0.2, "seed": 4}
    np.testing.assert_allclose(op(qkv, chunk=chunk, **attrs), op(qkv, **attrs), rtol=1e-4, atol=1e-5)
    (d,), (expected,) = gradients_of(op, dy, qkv, chunk=chunk, **attrs), gradients_of(op, dy, qkv, **attrs)
    np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-5)


def test_attend_continues_where_a_cache_ends() -> None:
    q, k, v = (normal(3, 90, 8, seed=i) for i in range(3))
    whole, tail = np.empty_like(q), np.empty((3, 20, 8), np.float32)
    attend(q, k, v, whole)
    attend(q[:, 70:], k, v, tail, offset=70, chunk=16)
    np.testing.assert_allclose(tail, whole[:, 70:], rtol=1e-5, atol=1e-6)


def test_attention_sees_no_later_token() -> None:
    qkv = normal(80, 48)
    changed = qkv.copy()
    changed[50:] = normal(30, 48, seed=5)
    op = registry["causal_attention"]
    np.testing.assert_array_equal(op(qkv, n_head=2)[:50], op(changed, n_head=2)[:50])


def test_attention_of_scores_whose_exponentials_overflow_or_vanish() -> None:
    q, k, v = (normal(2, 150, 16, seed=i) for i in range(3))
    q[0, ::3] *= 200.0  # scores of some hundreds in some rows
    q[1, 10:] = -40.0 - normal(140, 16, seed=9) / 8
    k[1] = np.abs(k[1]) + 1.0  # nothing but large negative ones
    qkv = np.concatenate([x.transpose(1, 0, 2).reshape(150, 32) for x in (q, k, v)], axis=1)
    grads = []
    for kind in (np.float32, np.float64):
        x = qkv.astype(kind)
        y, saved = registry["causal_attention"].run(x, n_head=2)
        dx = registry["causal_attention"].gradients(normal(150, 32).astype(kind), y, x, saved=saved, n_head=2)[0]
        grads.append((y, dx))
    scores = np.where(np.tri(150, dtype=bool), (q.astype(float) @ k.swapaxes(1, 2)) / 4.0, -np.inf)
    exact = (registry["softmax"](scores) @ v).transpose(1, 0, 2).reshape(150, 32)
    assert (np.abs(scores[np.isfinite(scores)]) > 100).sum() > 1000
    np.testing.assert_allclose(grads[1][0], exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads[0][0], exact, rtol=1e-3, atol=1e-4)  # scores of 300 have errors of 2e-5
    np.testing.assert_allclose(grads[0][1], grads[1][1], rtol=1e-2, atol=1e-2)


def test_attention_of_a_row_depends_on_no_other_row() -> None:
    q, k, v = normal(3, 70, 8), normal(3, 90, 8, seed=1), normal(3, 90, 8, seed=2)
    plain, beside_huge = np.empty_like(q), np.empty_like(q)
    attend(q, k, v, plain, offset=20)
    q[1, 5] *= 1e4
    attend(q, k, v, beside_huge, offset=20)
    same = np.ones((3, 70), bool)
    same[1, 5] = False
    np.testing.assert_array_equal(beside_huge[same], plain[same])


@pytest.mark.parametrize("known", [True, False], ids=["sgemm of the BLAS", "NumPy alone"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_products_are_added_whatever_the_layout(known: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blas._gemm() is not None, "the BLAS of NumPy's wheels is known"
    if not known:
        monkeypatch.setattr(blas, "_gemm", lambda: None)
    for m, k, n in ((3, 4, 5), (1, 4, 5), (4, 1, 5), (4, 5, 1), (1, 1, 1), (200, 70, 130), (5, 0, 4)):
        a, b = normal(m, k, seed=1).astype(kind), normal(k, n, seed=2).astype(kind)
        spread = [np.zeros((2 * size[0], 3 * size[1]), kind) for size in (a.shape, b.shape)]
        for x, wide in zip((a, b), spread, strict=True):
            wide[: x.shape[0], : x.shape[1]] = x
        lefts = [a, np.asfortranarray(a), spread[0][:m, :k], np.repeat(a, 2, axis=1)[:, ::2]]
        rights = [b, np.asfortranarray(b), spread[1][:k, :n], np.repeat(b, 2, axis=0)[::2]]
        for left in lefts:
            for right in rights:
                out = np.ones((m, n + 3), kind)
                blas.add_product(left, right, out[:, 2 : n + 2])
                np.testing.assert_allclose(out[:, 2 : n + 2], a @ b + 1, rtol=1e-5, atol=1e-5)
                assert (out[:, [0, 1, -1]] == 1).all()


@pytest.mark.parametrize("known", [True, False], ids=["saxpby of the BLAS", "NumPy alone"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_vectors_are_scaled_and_added_with_one_result_however_they_are_cut(
    known: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blas._axpby() is not None, "the BLAS of NumPy's wheels is known"
    if not known:
        monkeypatch.setattr(blas, "_axpby", lambda: None)
    x, y = normal(1000).astype(kind), normal(1000, seed=1).astype(kind)
    whole, cut = y.copy(), y.copy()
    blas.add_scaled(0.3, x, -0.7, whole)
    np.testing.assert_allclose(whole, 0.3 * x - 0.7 * y, rtol=1e-5, atol=1e-6)
    for start, stop in ((0, 3), (3, 20), (20, 21), (21, 1000)):
        blas.add_scaled(0.3, x[start:stop], -0.7, cut[start:stop])
    np.testing.assert_array_equal(cut, whole)


def test_products_accept_transposed_views() -> None:
    a, b = normal(40, 300), normal(500, 300, seed=1)
    np.testing.assert_allclose(product(a, b.T), a @ b.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product(b.T, b, accumulate=False), b.T @ b, rtol=1e-4, atol=1e-4)
    out = np.ones((40, 500), np.float32)
    np.testing.assert_allclose(product(a, b.T, out, accumulate=True), a @ b.T + 1, rtol=1e-4, atol=1e-4)


def test_a_pool_never_hands_out_what_is_in_use() -> None:
    pool = buffers.BufferPool()
    with buffers.reusing(pool):
        first = buffers.empty((200, 200), np.float32)
        view = first[3:, 2:].T
        del first
        second = buffers.empty((200, 200), np.float32)
        assert not np.shares_memory(view, second)
        del view
        third = buffers.empty((100, 400), np.float32)
        assert not np.shares_memory(second, third)
    assert bytes_of(pool) == 2 * 200 * 200 * 4


def test_a_loose_pool_never_hands_out_what_is_in_use_nor_holds_more_than_was_in_use_at_once() -> None:
    pool, held, most = buffers.LooseBufferPool(), list[np.ndarray](), 0
    rng = np.random.default_rng(3)
    for number in range(500):
        if len(held) == 4 or (held and rng.random() < 0.5):
            held.pop(rng.integers(len(held)))
        new = pool.empty((int(rng.integers(1, 9)), 1000), np.dtype(np.float32))[:, 1:]
        new[...] = number
        assert not any(np.shares_memory(new, other) for other in held)
        held.append(new)
        most = max(most, len(held))
        del new
        assert all((one == one[0, 0]).all() for one in held)
        assert bytes_of(pool) <= most * 8 * 1000 * 4
    held.clear()
    before = bytes_of(pool)
    held = [pool.empty((size, 1000), np.dtype(np.float32)) for size in (3, 2, 1, 1)]
    assert bytes_of(pool) == before, "what is unused serves whatever is smaller"


class TestDropout:
    """Statistics have their own tolerance: five standard deviations of the binomial."""

    @pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
    def test_drops_a_share_p_and_keeps_the_mean(self, p: float) -> None:
        n = 1_000_000
        y = registry["dropout"](np.ones(n, np.float32), p=p, seed=11)
        assert abs((y == 0).mean() - p) <= 5 * np.sqrt(p * (1 - p) / n) + 2**-16
        np.testing.assert_allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)

    def test_masks_differ_by_seed_step_and_site_and_repeat(self) -> None:
        key = {"seed": 1, "step": 2, "site": 3}
        mask = rng.keep_mask(0.5, 4096, **key)
        np.testing.assert_array_equal(mask, rng.keep_mask(0.5, 4096, **key))
        for part in key:
            other = rng.keep_mask(0.5, 4096, **{**key, part: 77})
            assert 0.4 < (mask == other).mean() < 0.6

    def test_a_mask_can_be_drawn_from_the_middle(self) -> None:
        whole = rng.keep_mask(0.3, 4096, seed=5, row=2)
        np.testing.assert_array_equal(whole[1600:1700], rng.keep_mask(0.3, 100, seed=5, row=2, start=1600))

    def test_negative_seeds_are_seeds(self) -> None:
        assert (rng.keep_mask(0.5, 100, seed=-1) != rng.keep_mask(0.5, 100, seed=1)).any()

    def test_probabilities_of_heads_are_dropped_independently(self) -> None:
        t = 64
        qkv = np.zeros((2, t, 3 * t * 2), np.float32)  # uniform attention; v is the identity: the output is the mask
        for head in range(2):
            qkv[:, :, (4 + head) * t : (5 + head) * t] = np.eye(t)
        y = registry["causal_attention"](qkv, n_head=2, p=0.5, seed=8)
        kept = y.reshape(2, t, 2, t).transpose(0, 2, 1, 3).reshape(4, t, t)[:, np.tri(t, dtype=bool)] != 0
        np.testing.assert_allclose(kept.mean(axis=1), 0.5, atol=0.06)
        agreement = np.corrcoef(kept) - np.eye(4)
        assert np.abs(agreement).max() < 0.12
