"""The script for QuPath is data of the package: what can be checked without QuPath."""

from __future__ import annotations

import re
from importlib.resources import files

SCRIPT = files("wsi_ips.report").joinpath("assets", "qupath_overlay.groovy").read_text(encoding="utf-8")


def test_it_says_what_it_is_before_anything_else() -> None:
    """The comments at the head say what it does, how it is run, which files it wants, and that we have not run it."""
    head = SCRIPT[: SCRIPT.index("\nimport ")]
    assert all(line.startswith("//") for line in head.strip().splitlines())
    for said in (
        "How to run",
        "Not run in our tests",
        "QuPath 0.5/0.6",
        "width0",
        "height0",
        "downsample",
        "overlay",
        "objects",
    ):
        assert said in head


def test_every_key_it_reads_is_explained_and_every_function_exists() -> None:
    """What it takes from the JSON is listed in its head; what it calls of its own is defined in it."""
    head = SCRIPT[: SCRIPT.index("\nimport ")]
    body = SCRIPT[len(head) :]
    for key in set(re.findall(r"\bmap\.([a-z_0-9]+)\b", body)):
        assert key in head, key
    defined = set(re.findall(r"^(?:File|List<\w+>|Map|boolean|int|void) (\w+)\(", body, re.MULTILINE))
    main = body[: body.index("/** Where the script")]
    called = set(re.findall(r"(?<![.\w])([a-z]\w+)\(", main)) - {"getCurrentViewer", "getCurrentImageData", "if"}
    assert called - {"promptForDirectory"} <= defined
    assert defined - {"sidecarsIn"} <= called | {"sidecarsIn"}


def test_brackets_and_quotes_close() -> None:
    """A slip of the pen would only show in a hospital."""
    code = "\n".join(re.sub(r"(?<!:)//.*", "", line) for line in SCRIPT.splitlines())
    code = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    code = re.sub(r"\$\{[^}]*\}", "", code)
    code = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", code)
    for opening, closing in ("()", "[]", "{}"):
        assert code.count(opening) == code.count(closing), opening
    assert '"' not in code
    assert code.count("'") % 2 == 0
