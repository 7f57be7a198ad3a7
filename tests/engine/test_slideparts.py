"""How large slides are without opening them, and in which order they are done."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.engine.slideparts import longest_first, size_of_slide
from wsi_ips.slide.stamps import stamps


def test_a_slides_size_is_that_of_all_its_files(tmp_path: Path) -> None:
    """A file, a folder of DICOM files, MIRAX with its data; what only reading would tell is not known."""
    (tmp_path / "a.svs").write_bytes(b"x" * 10)
    (tmp_path / "series").mkdir()
    (tmp_path / "m.mrxs").write_bytes(b"x" * 3)
    (tmp_path / "m").mkdir()
    for folder in ("series", "m"):
        for i in range(3):
            (tmp_path / folder / f"{i}.dat").write_bytes(b"x" * (i + 1))
    (tmp_path / "one.dcm").write_bytes(b"x")
    sizes = {name: size_of_slide(str(tmp_path / name)) for name in ("a.svs", "series", "m.mrxs", "one.dcm", "gone.svs")}
    assert sizes == {"a.svs": 10, "series": 6, "m.mrxs": 9, "one.dcm": None, "gone.svs": None}
    assert size_of_slide("file://" + str(tmp_path / "a.svs")) == 10
    assert (size_of_slide("s3://bucket/a.svs"), size_of_slide(None)) == (None, None)


def test_a_changed_part_changes_the_stamps(tmp_path: Path) -> None:
    """A file written again, in place or by renaming, is another, even of the same size."""
    main, data = tmp_path / "m.mrxs", tmp_path / "m" / "d.dat"
    data.parent.mkdir()
    main.write_bytes(b"x")
    data.write_bytes(b"abc")
    before = stamps(str(main))
    (tmp_path / "new").write_bytes(b"abd")
    (tmp_path / "new").rename(data)
    assert len(before) == 2
    assert stamps(str(main)) != before


@pytest.mark.parametrize(
    ("sizes", "order"),
    [([1, 5, 3], "bca"), ([2, 2, 2], "abc"), ([None, 1, 3], "cab"), ([3, None, 1], "abc"), ([None, None, None], "abc")],
)
def test_the_longest_comes_first(sizes: list[int | None], order: str) -> None:
    """Ties stay in their order; an unknown size counts as the average."""
    assert "".join(longest_first("abc", sizes)) == order


@given(st.lists(st.none() | st.integers(0, 9)))
def test_nothing_is_lost_or_done_twice(sizes: list[int | None]) -> None:
    """Every job once, known sizes falling."""
    order = longest_first(range(len(sizes)), sizes)
    assert sorted(order) == list(range(len(sizes)))
    known = [size for i in order if (size := sizes[i]) is not None]
    assert known == sorted(known, reverse=True)
