"""Text from anywhere: nothing is expanded, nothing grows, nothing is too deep, whatever the encoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_ips.config import TileSpec, load_settings
from wsi_ips.errors import ConfigError
from wsi_ips.untrusted import may_define_entities, read_json, read_xml, read_yaml, refuse_dtd

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp037", "utf-7")
DTDS = {
    "bomb": '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><x>&c;</x>',
    "file": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "external": '<!DOCTYPE x SYSTEM "http://localhost/x.dtd"><x/>',
    "parameter": '<!DOCTYPE x [<!ENTITY % a "b">%a;]><x/>',
    "late": "<!-- before -->\n<?pi?><!DOCTYPE x []><x/>",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("case", DTDS)
@pytest.mark.parametrize("is_stated", [True, False])
def test_fault_056_a_dtd_is_refused_in_every_encoding(encoding: str, case: str, is_stated: bool) -> None:
    """Whole files and those read up to their first element; stated encoding or not; never an element as answer."""
    stated = f'<?xml version="1.0" encoding="{encoding}"?>' if is_stated else ""
    data = (stated + DTDS[case]).encode(encoding)
    for read in (refuse_dtd, lambda d: read_xml(d, max_bytes=10_000)):
        with pytest.raises(ValueError, match="it "):
            read(data)  # type: ignore[operator]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_plain_xml_is_read(encoding: str) -> None:
    """In the encodings in use; text states none."""
    stated = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    text = "<a b='\u00e9'><c/></a>"
    for data in ((stated + text).encode(encoding), stated + text, text):
        root = read_xml(data, max_bytes=1000)
        assert (root.tag, root.get("b"), [e.tag for e in root]) == ("a", "\u00e9", ["c"])


def test_fault_057_xml_has_limits() -> None:
    """100,000 elements in each other, too many bytes, and what is no XML are one sentence."""
    for data, words in (("<a>" * 100_000 + "</a>" * 100_000, "nested more than 64 deep"), ("<a/>" + " " * 2_000_000, "more than"),
                        ("<a>", "not well-formed"), ("", "not well-formed"), (b"<?xml version='1.0' encoding='nope'?><a/>", "XML")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_xml(data, max_bytes=1_000_000)
    assert read_xml("<a>" * 64 + "</a>" * 64, max_bytes=1000).tag == "a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<OME/>", False), ("plain words & a < b", False), ("<!doctype x>", True), ("<x><!ENTITY a 'b'></x>", True),
     ("<!DOCTYPE x>".encode("utf-16-le").decode("utf-8"), True), ('<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-', True),
     ("<?xml version='1.0' encoding = 'Windows-1252'?><a/>", False)],
)  # fmt: skip
def test_fault_056_texts_that_other_readers_may_expand(text: str, expected: bool) -> None:
    """Broken and cut XML counts too, and encodings in which the letters may be written otherwise."""
    assert may_define_entities(text) is expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_its_encodings(encoding: str) -> None:
    """Brackets within strings are no depth."""
    text = '{"a": ["[[[[", "\\\\\\"]", {"\u00e9": 1}]}'
    assert read_json(text.encode(encoding), max_bytes=1000, max_depth=3) == {"a": ["[[[[", '\\"]', {"\u00e9": 1}]}


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"[" * 100_000, "nested 100000 deep"), (b'{"a":' * 100_000, "nested 100000 deep"),
     (b"[" * 65 + b"]" * 65, "nested 65 deep, more than 64"), (("[" * 100_000).encode("utf-16"), "nested"),
     (b"[1, NaN]", "NaN is no JSON number"), (b"-Infinity", "no JSON number"), (b" " * 3_000_000, "more than"),
     (b"\xff\xfe\x00", "codec"), (b"", "Expecting value"), (b"[1" + b"0" * 5000 + b"]", "digits")],
)  # fmt: skip
def test_fault_057_json_has_limits(data: bytes, words: str) -> None:
    """Depth, size, numbers: a ValueError that says which."""
    with pytest.raises(ValueError, match=words):
        read_json(data, max_bytes=2_000_000)


def test_yaml_has_limits() -> None:
    """Aliases, depth, size, objects of other programs: a ValueError that says which, and where."""
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for text, words in ((bomb, r"line 2: an alias \(\*a\)"), ("[" * 1000, "line 1: it is nested more than 64 deep"),
                        ("- " * 1000, "nested more than 64"), ("a" * 2_000_000, "more than"), ("a: [", "line 1"),
                        ("!!python/object/apply:os.system [ls]", "could not determine a constructor")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_yaml(text, max_bytes=1_000_000)
    assert read_yaml("a: {b: [1, x]}", max_bytes=100) == {"a": {"b": [1, "x"]}}


def test_a_file_of_settings_that_grows_is_refused_with_its_name(tmp_path: Path) -> None:
    """Settings go through the same reader."""
    (tmp_path / "s.yaml").write_text("a: &a [x]\nb: [*a, *a]\n")
    with pytest.raises(ConfigError, match=r"s\.yaml: cannot be read as YAML \(line 2: an alias"):
        load_settings(TileSpec, tmp_path / "s.yaml")


def test_a_text_of_quotes_takes_no_longer_than_its_length() -> None:
    """A string that is never closed, of a million escaped quotes, is gone over once."""
    with pytest.raises(ValueError, match=r"Unterminated string"):
        read_json(b'["' + b'\\"' * 1_000_000, max_bytes=1 << 24)
