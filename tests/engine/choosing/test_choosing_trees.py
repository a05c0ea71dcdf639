"""The tree of the choices: what it has, and that reading it changes nothing and gives what each of its texts gives."""

import numpy as np
import pytest
from pg_gpt2.core import gpt2
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.core.tape import Eager
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.generation.decode import Decoder, logits_of, read_with_trees
from pg_gpt2.generation.trees import Tree, Trie

from tests.engine.choosing.questions import arranged, random_texts
from tests.engine.small_models import CONFIGS, name_of, random_params


@pytest.mark.parametrize("seed", range(5))
def test_a_trie_has_a_row_for_each_beginning_that_something_follows(seed: int) -> None:
    texts = random_texts(np.random.default_rng(seed), 60)
    trie = Trie(texts)
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(trie.tree.tokens.tolist(), trie.tree.parents.tolist()):
        paths.append((*paths[parent + 1], token))
    beginnings = {tuple(text[:length]) for text in texts for length in range(len(text))}
    assert len(set(paths)) == len(paths) == len(trie)
    assert set(paths) == beginnings
    assert (np.diff(trie.rows) >= 0).all()
    weights = np.random.default_rng(seed).standard_normal(len(trie.rows))
    by_place = {(paths[row], token): 0.0 for row, token in zip(trie.rows.tolist(), trie.tokens.tolist())}
    by_place |= {place: float(n) for n, place in enumerate(by_place)}
    values = [by_place[paths[row], token] for row, token in zip(trie.rows.tolist(), trie.tokens.tolist())]
    wanted = [sum(by_place[tuple(text[:i]), token] for i, token in enumerate(text)) for text in texts]
    np.testing.assert_array_equal(trie.add_up(np.array(values)), wanted)
    assert len(weights) == sum(map(len, texts))


def test_a_tree_knows_its_depths_and_who_follows_whom() -> None:
    tree = Tree([5, 6, 7, 8], [-1, 0, -1, 1])
    assert tree.depths.tolist() == [0, 1, 0, 2]
    assert (tree.mask == 0).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_parts_of_a_tree_have_what_leads_to_them(size: int) -> None:
    trie = Trie(random_texts(np.random.default_rng(3), 60, length=12))
    found = []
    for part, leading in trie.parts(size):
        assert len(part) - leading <= size
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(part.tokens.tolist(), part.parents.tolist()):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        found += paths[leading:]
    whole: list[tuple[int, ...]] = [()]
    for token, parent in zip(trie.tree.tokens.tolist(), trie.tree.parents.tolist()):
        whole.append((*whole[parent + 1], token))
    assert found == whole[1:]


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
@pytest.mark.parametrize("length", [1, 63, 64, 70])
def test_a_tree_is_read_as_each_of_its_texts_is(config: GPT2Config, kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    params = random_params(config)
    ids = rng.integers(0, config.vocab, length).tolist()
    texts = random_texts(rng, 20)
    trie = Trie(texts)
    decoder = Decoder(arranged(params, config, kind), config, length)
    (rows,) = read_with_trees([decoder], [ids], [trie.tree])
    for text in texts:
        wanted = gpt2.logits(Eager(), params, np.asarray([[*ids, *text]]), config)[0, length - 1 : -1]
        path = [0]
        for token in text[:-1]:
            children = np.flatnonzero((trie.tree.parents == path[-1] - 1) & (trie.tree.tokens == token))
            path.append(1 + int(children[0]))
        found = logits_of(decoder.params, rows[path])
        np.testing.assert_allclose(found, wanted, atol=3e-5 * float(np.abs(wanted).max()))


def test_a_tree_changes_nothing_of_what_was_read(kind: str) -> None:
    config = CONFIGS[0]
    weights = arranged(random_params(config), config, kind)
    ids = np.random.default_rng(1).integers(0, config.vocab, 90).tolist()
    one, other = Decoder(weights, config, 96), Decoder(weights, config, 96)
    for decoder in (one, other):
        decoder.read(ids[:70])
    tree = Trie(random_texts(np.random.default_rng(2), 30)).tree
    first = one.feed_tree(tree).copy()
    assert one.length == 70
    assert list(one.ids) == ids[:70]
    np.testing.assert_array_equal(one.feed_tree(tree), first)
    np.testing.assert_array_equal(one.feed(ids[70:]), other.feed(ids[70:]))


def test_a_tree_beyond_the_window_is_refused(kind: str) -> None:
    config = CONFIGS[1]
    decoder = Decoder(arranged(random_params(config), config, kind), config, config.n_positions)
    decoder.read([1] * (config.n_positions - 2))
    decoder.feed_tree(Tree([1, 2, 3], [-1, 0, 0]))
    with pytest.raises(InvalidParameter, match="does not fit the model"):
        decoder.feed_tree(Tree([1, 2, 3], [-1, 0, 1]))
