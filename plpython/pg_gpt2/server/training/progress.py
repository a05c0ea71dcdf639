"""What a run tells its caller while it is running."""

import time

from .. import db

NOTICES = 10  # a run, unless log_every says otherwise


class Progress:
    """NOTICEs of a run, after the first step, every `log_every`-th and the last; and after every evaluation."""

    def __init__(self, n_steps: int, log_every: int | None) -> None:
        self.n_steps = n_steps
        self.every = log_every if log_every is not None else max(1, n_steps // NOTICES)
        self.tokens = 0
        self.began = time.perf_counter()

    def show(
        self, done: range, loss: float, lr: float, tokens: int, val_loss: float | None, is_best: bool = False
    ) -> None:
        """After the steps `done`, one or those of a round; loss and lr are of the last of them. `is_best`: its evaluation is the
        best so far, which matters to the run."""
        self.tokens += tokens
        step = done[-1]
        due = self.every and (done[0] == 1 or passes(done, self.every) or step == self.n_steps)
        if due or val_loss is not None:
            rate = self.tokens / (time.perf_counter() - self.began)
            validation = (
                "" if val_loss is None else f", validation loss {val_loss:.3f}{', the best so far' if is_best else ''}"
            )
            db.notice(f"step {step}/{self.n_steps}: loss {loss:.3f}{validation}, lr {lr:.2e}, {rate:,.0f} tokens/s")
            self.tokens, self.began = 0, time.perf_counter()


def passes(steps: range, every: int) -> bool:
    """Whether one of the steps is a multiple of `every`."""
    return steps[-1] // every > (steps[0] - 1) // every
