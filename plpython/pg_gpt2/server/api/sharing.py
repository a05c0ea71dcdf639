"""llm_share_param, llm_unshare_param: arguments from SQL, checked."""

from ...errors import require
from ..entry import entry
from ..storage import sharing


@entry
def share(
    source_model: str,
    source_name: str,
    source_token_id: int | None,
    target_model: str,
    target_name: str | None,
    target_token_id: int | None,
) -> int:
    """Share a block, or all of a tensor."""
    require(source_model=source_model, source_name=source_name, target_model=target_model)
    name = source_name if target_name is None else target_name
    return sharing.share(source_model, source_name, source_token_id, target_model, name, target_token_id)


@entry
def unshare(target_model: str, target_name: str, target_token_id: int | None, copy_optimizer_state: bool) -> int:
    """Put copies in the place of shared blocks."""
    require(target_model=target_model, target_name=target_name, copy_optimizer_state=copy_optimizer_state)
    return sharing.unshare(target_model, target_name, target_token_id, copy_optimizer_state)
