"""What a call over many rows tells at its end."""

from ..errors import PgGpt2Error
from . import db

LONGER = (  # a NOTICE about one prompt, and about several
    "1 prompt is longer than the {window}-token window; only its end was used",
    "{count:,} prompts are longer than the {window}-token window; only their ends were used",
)


class Report:
    """What NOTICEs tell at the end: which rows have no result, for reasons of their own, and how many prompts were cut, in the
    words `about_cut` for one and for several. `called`: what rows go by; `so`: what follows for those without a result."""

    def __init__(
        self, about_cut: tuple[str, str] = LONGER, called: str = "key", so: tuple[str, str] = ("", "")
    ) -> None:
        self.cut = 0
        self._about_cut, self._called, self._so = about_cut, called, so
        self._failed, self._first = 0, ""

    def failed(self, key: str | None, error: PgGpt2Error) -> None:
        """The row with this key has no result because of `error`."""
        self._failed += 1
        self._first = self._first or f"{self._called} {'NULL' if key is None else key}: {error.message}"

    def tell(self, window: int) -> None:
        """NOTICEs, where there is something to tell."""
        if self._failed == 1:
            db.notice(f"1 row has no result{self._so[0]} ({self._first})")
        elif self._failed:
            db.notice(f"{self._failed:,} rows have no result{self._so[1]}; first: {self._first}")
        if self.cut:
            db.notice(self._about_cut[self.cut > 1].format(count=self.cut, window=window))
