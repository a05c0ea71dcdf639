"""llm_adapter_create, llm_adapter_merge: arguments from SQL, checked."""

from dataclasses import replace
from math import prod

from ...core import gpt2
from ...core.config import Adapter
from ...errors import WrongState, require
from .. import resources, vocabularies
from ..entry import entry
from ..storage import adapters, locks, store, weights


@entry
def create(model: str, base: str, r: int, alpha: float, targets: list[str], dropout_p: float, seed: int) -> None:
    """A new adapter, which at first computes what its base does."""
    store.require_name(model)
    require(base=base, r=r, alpha=alpha, targets=targets, dropout_p=dropout_p, seed=seed)
    adapter = Adapter(r, alpha, tuple(targets), dropout_p)
    adapters.require_base(base)
    locks.lock(base, model)
    config = replace(adapters.require_base(base), adapter=adapter)  # as it is now that nobody can change it
    adapters.require_new(model)
    vocabularies.require_none(model)
    largest = max(4 * prod(shape) for shape in config.adapter_shapes().values())
    resources.require_memory(largest + store.writing_bytes(4 * config.n_trained()), f'making adapter "{model}"')
    adapters.register(model, base, config, seed)
    adapters.insert(model, gpt2.init_adapter(config, seed))
    resources.release_memory()


@entry
def merge(model: str, target: str) -> None:
    """An ordinary model of an adapter and its base."""
    require(model=model)
    store.require_name(target, "target")
    if store.config(model).adapter is None:
        raise _nothing_to_merge(model)
    locks.lock(target)
    store.require_no_weights(target)
    loaded = weights.load(model)
    if loaded.base is None:  # while the lock was waited for, another model got the name
        raise _nothing_to_merge(model)
    config = replace(loaded.config, adapter=None)
    largest = max(4 * prod(shape) for shape in config.param_shapes().values())
    needed = 2 * largest + store.writing_bytes(4 * config.n_params())
    resources.require_memory(needed, f'merging "{model}" into "{target}"')
    store.register(target, config)
    adapters.insert(target, gpt2.merged(loaded.params, loaded.config))
    vocabularies.copy(loaded.base.name, target)
    vocabularies.copy_chat_template(model, target)  # its own, if any, in the place of its base's
    resources.release_memory()


def _nothing_to_merge(model: str) -> WrongState:
    return WrongState(
        f'"{model}" is no adapter, and so there is nothing to merge', hint="llm_copy_model copies a model."
    )
