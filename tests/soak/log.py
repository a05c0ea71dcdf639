"""What the server's log must not have: crashes that nobody caused, and errors that are defects."""

import re
from pathlib import Path

DEFECTS = re.compile(
    r"PANIC|unexpected \w+(Error|Exception)\b.*|could not (read|write) .*|invalid page|Assert|deadlock detected"
)
CRASH = re.compile(r"server process .* was terminated by signal (\d+)")


def unexpected_lines(log: Path, start: int, kills: int) -> list[str]:
    """Lines after byte `start` that tell of a defect, or of more crashes than processes were killed."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    signals = CRASH.findall(text)
    found = [line for line in text.splitlines() if DEFECTS.search(line)]
    if len(signals) > kills or any(number != "9" for number in signals):
        found.append(f"{len(signals)} crashes by signals {sorted(set(signals))}, and {kills} processes were killed")
    return found
