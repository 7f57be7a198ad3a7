"""JSON, YAML and XML that come from anywhere: limits on size and depth, no entities, no aliases.

A small file must not become a large structure, and a deep one must not end the program that reads it. What is refused
is a ValueError whose text says why; the room that reads the file puts its name in front.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import yaml

__all__ = ["MAX_DEPTH", "may_define_entities", "read_json", "read_xml", "read_yaml", "refuse_dtd"]

MAX_DEPTH = 64  # of lists in lists, or elements in elements
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one that is not closed goes to the end, once
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DECLARATION = re.compile(r"<\?xml[^>]*?encoding\s*=\s*[\"']\s*([\w.:-]+)", re.IGNORECASE)
_PLAIN = {
    "utf-8",
    "utf8",
    "us-ascii",
    "ascii",
    "iso-8859-1",
    "latin1",
    "windows-1252",
    "utf-16",
    "utf-16le",
    "utf-16be",
}
_DTD = "it holds a document type definition, which may define entities; save it without"


def read_json(data: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH, allow_nan: bool = False) -> Any:
    """Read JSON (UTF-8, UTF-16 or UTF-32).

    Args:
        data: the file.
        max_bytes: a longer one is refused.
        max_depth: of lists and objects in each other.
        allow_nan: take NaN and Infinity, which are no JSON, for numbers.

    >>> read_json(b'{"a": [1, 2]}', max_bytes=100)
    {'a': [1, 2]}
    >>> read_json(b"[[[0]]]", max_bytes=100, max_depth=2)
    Traceback (most recent call last):
    ...
    ValueError: it is nested 3 deep, more than 2
    """
    _refuse_size(data, max_bytes)
    encoding = json.detect_encoding(data)
    text = data.decode(encoding)
    _refuse_depth(data if encoding.startswith("utf-8") else text.encode(), max_depth)
    try:
        return json.loads(text, parse_constant=float if allow_nan else _no_number)
    except RecursionError as error:  # of brackets that stand where none may
        raise ValueError("it is nested too deep") from error


def read_yaml(text: str, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Read YAML made of plain values, lists and mappings.

    >>> read_yaml("a: [1, &x 2, *x]", max_bytes=100)
    Traceback (most recent call last):
    ...
    ValueError: line 1: an alias (*x): write the value out, for aliases of aliases grow without bound
    """
    _refuse_size(text.encode("utf-8", "surrogatepass"), max_bytes)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent):
                why = f"an alias (*{event.anchor}): write the value out, for aliases of aliases grow without bound"
                raise ValueError(f"line {line}: {why}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > max_depth:
                raise ValueError(f"line {line}: it is nested more than {max_depth} deep")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def refuse_dtd(data: bytes | str) -> None:
    """Refuse XML, in whatever encoding, that holds a document type definition; reads up to the first element.

    >>> refuse_dtd('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'.encode("utf-16"))
    Traceback (most recent call last):
    ...
    ValueError: it holds a document type definition, which may define entities; save it without
    """
    _scan(data, None)


def may_define_entities(text: str) -> bool:
    """Tell whether a text, XML or not, whole or not, could define entities to some reader of XML.

    Args:
        text: as decoded from ASCII or a kin of it; UTF-16 shows as NULs between the letters.

    >>> [may_define_entities(t) for t in ("<OME/>", "<\\0!\\0D\\0O\\0C\\0T\\0Y\\0P\\0E", '<?xml encoding="UTF-7"?>')]
    [False, True, True]
    """
    bare = text.replace("\0", "").upper()
    stated = _DECLARATION.search(bare[:1024])
    is_strange = stated is not None and stated[1].lower() not in _PLAIN  # in which the letters may be written otherwise
    return is_strange or "<!DOCTYPE" in bare or "<!ENTITY" in bare


def read_xml(data: bytes | str, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> ElementTree.Element:
    """Read XML that holds no document type definition, so that no entity is expanded and no other file is opened.

    Args:
        data: bytes in the encoding they state, or text, whose own statement of an encoding is passed over.
        max_bytes: a longer one is refused.
        max_depth: of elements in each other.
    """
    if isinstance(data, str):
        data = re.sub(r"^\s*<\?xml[^>]*\?>", "", data).encode("utf-8", "surrogatepass")
    _refuse_size(data, max_bytes)
    _scan(data, max_depth)
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not well-formed XML ({error})") from error


class _EnoughError(Exception):
    """The first element was reached."""


class _RefusedError(Exception):
    """Well-formed, and refused all the same."""


def _scan(data: bytes | str, max_depth: int | None) -> None:
    """Go through XML without building it; None stops at the first element."""
    parser = expat.ParserCreate()
    depth = 0

    def refuse(*_: Any) -> None:
        raise _RefusedError(_DTD)

    def start(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if max_depth is None:
            raise _EnoughError
        if depth > max_depth:
            raise _RefusedError(f"its elements are nested more than {max_depth} deep")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = refuse, refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(data, True)
    except _EnoughError:
        return
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an encoding that expat does not take
        raise ValueError(f"it is not well-formed XML ({error})") from error


def _refuse_size(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ValueError(f"its {len(data)} bytes are more than {max_bytes}")


def _refuse_depth(data: bytes, max_depth: int) -> None:
    """Count brackets outside strings, without building anything."""
    brackets = np.frombuffer(_STRING.sub(b"", data).translate(None, _NOT_BRACKETS), np.uint8)
    depth = 0
    for i in range(0, len(brackets), 1 << 20):
        part = brackets[i : i + (1 << 20)]
        depths = depth + np.cumsum(np.where((part == ord("[")) | (part == ord("{")), 1, -1))
        if depths.max() > max_depth:
            raise ValueError(f"it is nested {depths.max()} deep, more than {max_depth}")
        depth = int(depths[-1])


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
