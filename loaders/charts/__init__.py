"""Observable Plot and d3, as their authors publish them, and the charts that the report and the window draw with them.

charts.js is a plain script: it adds one object, `charts`, and takes colours and fonts from charts.css.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
SCRIPTS = ("d3.min.js", "plot.umd.min.js", "charts.js")  # in the order in which a page loads them
LICENSES = {"d3.min.js": "LICENSE-d3", "plot.umd.min.js": "LICENSE-plot"}


def text(name: str) -> str:
    """A file of this directory."""
    return (DIRECTORY / name).read_text(encoding="utf-8")


def with_license(name: str) -> str:
    """A script under the licence that must stand beside every copy of it, as a comment."""
    return f"/*\n{text(LICENSES[name])}*/\n{text(name)}" if name in LICENSES else text(name)
