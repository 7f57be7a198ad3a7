"""Manifests: a row is a record or a problem, and every problem is told at once with line, column and cure."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.manifest import Manifest, load_manifest, manifest_of_slide, manifest_or_slide
from wsi_ips.slidefiles import slide_stem


def _write(folder: Path, text: str | bytes, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _load(folder: Path, text: str | bytes, **options: Any) -> Manifest:
    return load_manifest(_write(folder, text), **({"check_files": False} | options))


def _problems(folder: Path, text: str | bytes, **options: Any) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as info:
        _load(folder, text, **options)
    return info.value.problems


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (
            "case_id,slide_id,label\np,s1,t\n",
            {"ext": "svs"},
            {"patient_id": "p", "slide_id": "s1", "slide_path": "s1.svs"},
        ),
        (
            "PATIENT,FILENAME\np,s1.h5\n",
            {"ext": ".svs"},
            {"patient_id": "p", "slide_id": "s1", "slide_path": "s1.svs"},
        ),
        ("wsi,mpp\nd/s1.ndpi,0.25\n", {}, {"slide_id": "s1", "slide_path": "d/s1.ndpi", "mpp": 0.25}),
        (
            "sample_id,image_path,mask_path,spacing_at_level_0\n007,i/x.tif,m/x.png,0.5\n",
            {},
            {"slide_id": "007", "slide_path": "i/x.tif", "mpp": 0.5},
        ),
        (
            "patient,slide,dataset\np,s1,train\n",
            {"ext": "svs"},
            {"patient_id": "p", "slide_id": "s1", "split": "train", "slide_path": "s1.svs"},
        ),
        ("slide,label\nd/s1.svs,t\n", {}, {"slide_id": "s1", "slide_path": "d/s1.svs"}),
        (
            "id\tfilename\tmd5\n3430898b-02c2-47dd-91e5-c8022177fb6a\tTCGA-49-4506-01Z-00-DX3.a05a-1.svs\td41d8cd98f00b204e9800998ecf8427e\n",
            {},
            {
                "slide_id": "TCGA-49-4506-01Z-00-DX3.a05a-1",
                "patient_id": "TCGA-49-4506",
                "site": "49",
                "slide_path": "3430898b-02c2-47dd-91e5-c8022177fb6a/TCGA-49-4506-01Z-00-DX3.a05a-1.svs",
            },
        ),
    ],
    ids=["CLAM", "STAMP", "TRIDENT", "hs2p", "slideflow", "slide is a path", "GDC"],
)
def test_tables_of_other_tools_are_read(
    tmp_path: Path, text: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Columns of the tools people come from mean what they mean there."""
    (r,) = _load(tmp_path, text, slide_root="/data", **options).records
    expected = {**expected, "slide_path": f"/data/{expected['slide_path']}"}
    assert {k: getattr(r, k) for k in expected} == expected


def test_pathobench_folds_and_fold_numbers(tmp_path: Path) -> None:
    """`fold_<k>` holds splits, `fold` a number; a word in either is a problem."""
    text = "slide_path,fold,fold_0,Fold_1\na.svs,{},train,{}\n"
    (r,) = _load(tmp_path, text.format("2", "TEST")).records
    assert r.folds == {"fold": "2", "fold_0": "train", "fold_1": "test"}
    number, split = _problems(tmp_path, text.format("2.0", "validation"))
    assert "column 'Fold_1': 'validation' is no split; did you mean 'val'?" in number + split
    assert "column 'fold': '2.0' is no fold" in number + split


def test_two_columns_of_one_meaning_must_agree(tmp_path: Path) -> None:
    """Aliases side by side are fine while equal; the first row in which they differ is named with both values."""
    same = _load(tmp_path, "slide_path,mpp,mpp_x\na.svs,0.5,0.5\nb.svs,,0.25\n")
    assert [r.mpp for r in same] == [0.5, 0.25]
    (problem,) = _problems(tmp_path, "slide_path,patient_id,case_id\na.svs,p,p\nb.svs,p,q\n")
    assert problem == (
        "m.csv: line 3, column 'case_id': 'patient_id' and 'case_id' both mean patient_id and differ ('p' and 'q'); "
        "rename or remove one of the columns"
    )


def test_fault_046_a_column_twice_is_refused(tmp_path: Path) -> None:
    """No second column is renamed behind the user's back."""
    (problem,) = _problems(tmp_path, "slide_path,label,label\na.svs,x,y\n")
    assert "line 1, column 'label': there are 2 columns of this name; rename or remove" in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slidepath,label\na.svs,x\n", ["found: slidepath, label", "did you mean 'slide_path' by 'slidepath'?"]),
        ("tumor_020,1\nnormal_052,0\n", ["header line is missing", "tumor_020, 1", "slide_id,label"]),
        ("a.svs,x\nb.svs,y\n", ["header line is missing"]),
        ("train,val,test\na,b,c\n", ["list of splits", "column 'split'"]),
        ("PATIENT,stage\np,1\n", ["table of patients", "'PATIENT'", "join"]),
        ("seg_level,sthresh\n-1,15\n", ["found: seg_level, sthresh"]),
    ],
)
def test_a_table_without_slides_is_told_apart(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message says what the table seems to be and what to change."""
    (problem,) = _problems(tmp_path, text)
    assert problem.startswith("m.csv: line 1: ")
    assert all(w in problem for w in words), problem


def test_labels_come_from_the_columns_asked_for(tmp_path: Path) -> None:
    """Several label columns keep their order and text; a missing one is a problem that names the nearest."""
    text = "slide_path,subtype,Grade,site\na.svs,NA, 2 ,north\nb.svs,,3,\n"
    a, b = _load(tmp_path, text, label_columns=("grade", "subtype", "site"))
    assert (a.labels, a.label) == ({"grade": "2", "subtype": "NA", "site": "north"}, "2")
    assert b.labels == {"grade": "3", "subtype": "", "site": ""}
    assert a.site == "north"
    (problem,) = _problems(tmp_path, text, label_columns=("subtypes",))
    assert "line 1, column 'subtypes': no such column to take labels from; did you mean 'subtype'?" in problem


def test_no_label_is_needed_and_a_near_miss_is_noted(tmp_path: Path) -> None:
    """Without labels the manifest is fine; a column that looks like a typing error is noted, not obeyed."""
    manifest = _load(tmp_path, "slide_path,patientid,lable\na.svs,p,x\n")
    (r,) = manifest.records
    assert (r.label, r.patient_id, r.patient_is_default) == (None, "a", True)
    assert r.carried == {"patientid": "p", "lable": "x"}
    assert "did you mean 'patient_id'?" in manifest.notes[0].message
    assert "did you mean 'label'?" in manifest.notes[1].message


# ---- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slide_id",
    ["../x", "/x", "a/b", "a\\b", "a:b", "x" * 201, "é" * 101, "=1+1", "+x", "-x", "@x", ".x", "x.", '"a\nb"'],
)
def test_fault_048_and_049_ids_that_cannot_name_files_are_refused(tmp_path: Path, slide_id: str) -> None:
    """No id leaves its folder, becomes a formula or is too long for a disk."""
    problems = _problems(tmp_path, f"slide_path,slide_id\nok.svs,ok\nb.svs,{slide_id}\n")
    assert all(p.startswith("m.csv: line 3, column 'slide_id': ") for p in problems)
    assert any("cannot name files" in p and "begin with a letter" in p for p in problems)
    assert all("\n" not in p and len(p) < 400 for p in problems)


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("Slide", "sLIDE"), ("caf\u00e9", "cafe\u0301"), ("straße", "STRASSE")]
)
def test_fault_047_and_090_ids_equal_on_some_disk_are_equal(tmp_path: Path, first: str, second: str) -> None:
    """The same id twice, also but for case or the coding of accents, names both lines."""
    (problem,) = _problems(tmp_path, f"slide_path,slide_id\nx.svs,{first}\nz.svs,other\ny.svs,{second}\n")
    assert "line 4, column 'slide_id'" in problem
    assert "line 2" in problem
    assert "its own 'slide_id'" in problem


def test_fault_047_default_ids_that_collide_are_refused(tmp_path: Path) -> None:
    """a.svs and a.tif would overwrite each other's results: the user must name them."""
    (problem,) = _problems(tmp_path, "slide_path\nd/a.svs\ne/a.tif\n")
    assert "line 3, column 'slide_path': the id 'a' is taken: it stands in line 2" in problem


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [
        ("TCGA-55-7910-01Z-00-DX1.041e15d5-4852-49f6-85d9-74b510497651.svs",
         "TCGA-55-7910-01Z-00-DX1.041e15d5-4852-49f6-85d9-74b510497651"),
        ("d/x.ome.tif", "x"), ("CMU-1-Small-Region.jpeg.tiff", "CMU-1-Small-Region"), ("A.SVS", "A"),
        ("series/1.2.826.0.1/", "1.2.826.0.1"), ("s3://b/k/v.1.svs?versionId=3", "v.1"),
        (r"C:\slides\w.1.mrxs", "w.1"), (r"d\w.svs", "w"),
    ],
)  # fmt: skip
def test_the_default_id_is_the_name_without_its_ending(tmp_path: Path, name: str, slide_id: str) -> None:
    """Known endings go, other dots stay."""
    (r,) = _load(tmp_path, f"slide_path\n{name}\n").records
    assert r.slide_id == slide_id


def test_a_default_id_is_made_safe_and_says_so(tmp_path: Path) -> None:
    """A file's name with brackets still runs; the note tells the id it got."""
    manifest = _load(tmp_path, "slide_path\ntest3-DAPI-2-(387).ndpi\n")
    assert manifest.records[0].slide_id == "test3-DAPI-2-_387_"
    assert "'test3-DAPI-2-_387_'" in manifest.notes[0].message


@pytest.mark.parametrize(
    ("text", "words"),
    [("0,2528", None), ("0.05", None), ("10", None), ("2.5e-1", None), ("", None), ("0.25um", "is not a number"),
     ("nan", "not a finite number"), ("-inf", "not a finite number"), ("0", "outside 0.05 to 10"), ("-0.25", "outside"),
     ("40", "outside"), ("1e300", "outside"), ("1_0", "is not a number"), ("1.000,5", "is not a number")],
)  # fmt: skip
def test_mpp_is_believed_within_limits(tmp_path: Path, text: str, words: str | None) -> None:
    """A resolution is a number of µm per pixel from 0.05 to 10, with point or comma; all else is told."""
    manifest_text = f'slide_path,mpp\na.svs,"{text}"\nb.svs,0.5\n'
    if words is None:
        expected = float(text.replace(",", ".")) if text else None
        assert [r.mpp for r in _load(tmp_path, manifest_text)] == [expected, 0.5]
    else:
        (problem,) = _problems(tmp_path, manifest_text)
        assert "line 2, column 'mpp': " in problem
        assert words in problem
        assert "0.25 for a typical 40x scan" in problem


def test_splits_are_words_we_know(tmp_path: Path) -> None:
    """train, val, test in any case, empty for unused, None without the column; others name the nearest."""
    assert [r.split for r in _load(tmp_path, "slide_path,split\na.svs,Train\nb.svs,\n")] == ["train", ""]
    assert _load(tmp_path, "slide_path\na.svs\n").records[0].split is None
    (problem,) = _problems(tmp_path, "slide_path,split\na.svs,trian\n")
    assert "line 2, column 'split': 'trian' is no split; did you mean 'train'?" in problem


def test_exclusion_keeps_the_row_and_its_reason(tmp_path: Path) -> None:
    """Yes-words exclude, no-words do not, the failed QC of other tools does too; other words are problems."""
    text = "slide_path,exclude,qc_pass,note\na.svs,X,,blurred\nb.svs,no,1,\nc.svs,,FALSE,\nd.svs,0,,\n"
    rows = _load(tmp_path, text).records
    assert [r.is_excluded for r in rows] == [True, False, True, False]
    assert rows[0].exclude_reason == "column 'exclude' says X: blurred"
    assert rows[2].exclude_reason == "column 'qc_pass' says FALSE"
    (problem,) = _problems(tmp_path, "slide_path,exclude\na.svs,blurred\n")
    assert "line 2, column 'exclude': 'blurred' is neither yes nor no" in problem
    assert [r.is_excluded for r in _load(tmp_path, "slide_path,process\na.svs,0\nb.svs,1\n")] == [True, False]
    assert _load(tmp_path, "slide_path,process\na.svs,FFPE\n").records[0].carried == {"process": "FFPE"}


def test_patients_of_tcga_follow_from_the_name(tmp_path: Path) -> None:
    """Twelve characters in capitals; a given patient wins; other slides are their own patient and say so."""
    text = "slide_path,patient_id\ntcga-cr-7395-01a-01-ts1.svs,\nTCGA-CR-7395-01Z.svs,p\n"
    text += "other.svs,\nTCGA-CR-73951.svs,\n"
    rows = _load(tmp_path, text).records
    assert [(r.patient_id, r.patient_is_default) for r in rows] == [
        ("TCGA-CR-7395", False), ("p", False), ("other", True), ("TCGA-CR-73951", True),
    ]  # fmt: skip
    assert [r.site for r in rows] == ["CR", "CR", "", ""]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_relative_paths_start_at_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never at the working directory; `--slide-root` moves slides, masks and features alike."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = "slide_path,mask_path,features_path\nd/a.svs,m/a.png,f/a.h5\n/abs/b.svs,,\n"
    a, b = _load(tmp_path, text)
    expected = tuple(str(tmp_path / p) for p in ("d/a.svs", "m/a.png", "f/a.h5"))
    assert (a.slide_path, a.mask_path, a.features_path) == expected
    assert (b.slide_path, b.mask_path, b.features_path) == ("/abs/b.svs", None, None)
    assert load_manifest("../m.csv", check_files=False).records[0].slide_path == a.slide_path
    text = text.replace("/abs/b.svs,,\n", "")
    assert _load(tmp_path, text, slide_root="/data/x").records[0].mask_path == "/data/x/m/a.png"
    assert _load(tmp_path, text, slide_root="s3://b/x/").records[0].slide_path == "s3://b/x/d/a.svs"


def test_a_root_confines_what_a_manifest_names(tmp_path: Path) -> None:
    """Slides, masks and features that lie outside --slide-root, by dots, whole paths, links or URIs, are each a line."""
    root, other = tmp_path / "root", tmp_path / "rooted"
    for folder in (root / "d", other):
        folder.mkdir(parents=True)
        (folder / "a.svs").write_bytes(b"x")
    (root / "in.svs").symlink_to(root / "d" / "a.svs")
    (root / "out.svs").symlink_to(other / "a.svs")
    (root / "far").symlink_to(other)
    (root / "dangling.svs").symlink_to(other / "absent.svs")
    good = f"d/a.svs,1,,,\nin.svs,2,d/a.svs,,\n{root}/d/../d/a.svs,3,,d/a.svs,\nfar/../in.svs,4,,,\n"
    bad = (f"../rooted/a.svs,5,,,\n{other}/a.svs,6,,,\nout.svs,7,,,\nfar/a.svs,8,,,\ndangling.svs,9,,,\n"
           f"s3://b/a.svs,10,,,\nfile://{root}/in.svs,11,,,\nC:\\a.svs,12,,,\nd/a.svs,13,../rooted/a.svs,,\n"
           f"d/a.svs,14,,far/a.svs,\n../rooted/a.svs,15,,,yes\n..,16,,,\n")  # fmt: skip
    header = "slide_path,slide_id,mask_path,features_path,exclude\n"
    assert len(_load(tmp_path, header + good, slide_root=root, check_files=True)) == 4
    problems = _problems(tmp_path, header + good + bad, slide_root=root, check_files=True, allow_missing=True)
    assert [int(p.split("line ")[1].split(",")[0]) for p in problems] == [*range(6, 16), 17]
    assert all(f"outside --slide-root {root}; correct the path" in p for p in problems)
    assert "column 'mask_path'" in problems[8]
    assert "column 'features_path'" in problems[9]
    assert f"{root}/out.svs leads to {other}/a.svs, outside" in problems[2]
    assert len(_load(tmp_path, f"slide_path\n{other}/a.svs\n", check_files=True)) == 1  # no root, no confinement


def test_a_root_that_is_a_link_or_an_address_confines_too(tmp_path: Path) -> None:
    """A linked root is the folder behind it; below an address nothing climbs out, also not in percent signs."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.svs").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    text = f"slide_path,slide_id\na.svs,a\n{tmp_path}/disk/a.svs,b\n"
    assert len(_load(tmp_path, text, slide_root=tmp_path / "link", check_files=True)) == 2
    rows = "a.svs,1\ns3://b/x/c.svs,2\ns3://b/xy/c.svs,3\n../c.svs,4\n%2e%2e/c.svs,5\n/etc/c.svs,6\ns3://other/c.svs,7\n"
    problems = _problems(tmp_path, "slide_path,slide_id\n" + rows, slide_root="s3://b/x")
    assert [p.split(":")[1].split(",")[0] for p in problems] == [f" line {n}" for n in (4, 5, 6, 7, 8)]


def test_options_of_a_manifest_are_refused_for_a_single_slide(tmp_path: Path) -> None:
    """--slide-root and --ext would be without effect."""
    for options in ({"slide_root": str(tmp_path)}, {"ext": "svs"}):
        with pytest.raises(ConfigError, match="are for a manifest"):
            manifest_or_slide(str(tmp_path / "a.svs"), **options)


def test_the_ending_is_put_behind_once(tmp_path: Path) -> None:
    """`--ext` completes ids without an ending and leaves those that have it; without it one problem tells all rows."""
    text = "slide_id\nTCGA-55-7910-01Z-00-DX1.041e15d5\nb.svs\nc.SVS\n"
    paths = [r.slide_path for r in _load(tmp_path, text, ext="svs", slide_root="/r")]
    assert paths == ["/r/TCGA-55-7910-01Z-00-DX1.041e15d5.svs", "/r/b.svs", "/r/c.SVS"]
    (problem,) = _problems(tmp_path, "slide_id\na\nb\nc\n")
    assert problem == (
        "m.csv: line 2, column 'slide_id': 'a' does not tell the slide's file (and 2 more rows); "
        "give --slide-root and --ext, .svs for instance, or a column 'slide_path'"
    )


def test_fault_053_all_missing_files_are_listed_at_the_start(tmp_path: Path) -> None:
    """Slides, masks: each missing one is a line; DICOM folders, URIs and excluded rows are fine."""
    (tmp_path / "dicom").mkdir()
    (tmp_path / "a.svs").write_bytes(b"x")
    text = (
        "slide_path,mask_path,exclude\na.svs,,\nb.svs,,\ndicom,,\ns3://b/c.svs,,\nd.svs,,yes\n"
        "~/e.svs,,\nC:\\f.svs,,\nslides/*.svs,,\ndicom/g,nomask.png,\n,,\n"
    )
    problems = _problems(tmp_path, text, check_files=True)
    assert [p.split(":")[1].strip() for p in problems] == [
        "line 3, column 'slide_path'", "line 7, column 'slide_path'", "line 8, column 'slide_path'",
        "line 9, column 'slide_path'", "line 10, column 'slide_path'", "line 10, column 'mask_path'",
    ]  # fmt: skip
    assert f"no such file: {tmp_path / 'b.svs'}" in problems[0]
    assert "--allow-missing" in problems[0]
    assert "~ and $ are not expanded" in problems[1]
    assert "Windows path" in problems[2]
    assert "one row is one slide" in problems[3]
    assert "--ext" in problems[4]


def test_fault_053_missing_files_are_kept_when_allowed(tmp_path: Path) -> None:
    """With allow_missing each row stays, to become a failed row, and a note counts them."""
    manifest = _load(tmp_path, "slide_path\na.svs\nb.svs\n", check_files=True, allow_missing=True)
    assert [r.slide_id for r in manifest] == ["a", "b"]
    assert [n.code for n in manifest.notes] == ["E_MISSING"]
    assert "2 listed files" in manifest.notes[0].message


def test_a_pipe_is_no_slide(tmp_path: Path) -> None:
    """A named pipe would hang every reader: it is refused before any opens it."""
    os.mkfifo(tmp_path / "a.svs")
    (problem,) = _problems(tmp_path, "slide_path\na.svs\n", check_files=True)
    assert "neither a file nor a folder" in problem


def test_a_wrong_root_is_told_once(tmp_path: Path) -> None:
    """One wrong option is one problem, beside those of the table."""
    root, mpp = _problems(tmp_path, "slide_path,mpp\na.svs,x\nb.svs,\n", check_files=True, slide_root=tmp_path / "no")
    assert "--slide-root" in root
    assert "is not a folder" in root
    assert "line 2, column 'mpp'" in mpp


def test_one_file_under_two_ids_is_noted(tmp_path: Path) -> None:
    """It may be meant, so it is a note that names both lines."""
    manifest = _load(tmp_path, "slide_path,slide_id\na.svs,x\n./a.svs,y\n")
    assert [n.message for n in manifest.notes] == ["lines 2 and 3 (x and y) name the same file"]


def test_fault_052_every_problem_comes_at_once_in_order(tmp_path: Path) -> None:
    """The last bad row of a long list is told together with the first."""
    good = "".join(f"s{i}.svs,{i},train\n" for i in range(3, 2000))
    problems = _problems(tmp_path, f"slide_path,slide_id,split\ns.svs,a/b,train\n{good}z.svs,3,tset\n,q,\n")
    lines = [p.split(":")[1].split(",")[0].strip() for p in problems]
    assert lines == ["line 2", "line 2000", "line 2000", "line 2001"]


def test_fault_055_an_unchanged_row_keeps_its_hash(tmp_path: Path) -> None:
    """The hash follows the row's content, not its line; records travel between processes."""
    (a,) = _load(tmp_path, "slide_path,label\na.svs,x\n").records
    _, again = _load(tmp_path, "slide_path,label\nb.svs,x\na.svs,x\n").records
    (changed,) = _load(tmp_path, "slide_path,label\na.svs,y\n").records
    assert a.content_hash == again.content_hash != changed.content_hash
    assert pickle.loads(pickle.dumps(a)) == a


def test_a_single_slide_is_a_manifest_of_one(tmp_path: Path) -> None:
    """One slide goes the same way as many."""
    (tmp_path / "a (1).svs").write_bytes(b"x")
    (r,) = manifest_of_slide(tmp_path / "a (1).svs", mpp=0.5).records
    assert (r.slide_id, r.slide_path, r.mpp, r.row) == ("a _1_", str(tmp_path / "a (1).svs"), 0.5, 0)
    with pytest.raises(ManifestError, match="no such file"):
        manifest_of_slide(tmp_path / "b.svs")


# ---- real tables -----------------------------------------------------------------------------------------------------


_REAL_TABLES = [
        ("clam_heatmap_demo_dataset.csv", "svs", 2, ""),
        ("clam_heatmap_demo_dataset.csv", None, 0, "line 2, column 'slide_id': 'C3L-03262-22' does not tell"),
        ("clam_tumor_vs_normal_dummy_clean.csv", "svs", 500, ""),
        ("clam_preset_bwh_biopsy.csv", "svs", 0, "line 1: no column 'slide_path' or 'slide_id', found: seg_level"),
        ("gdc_manifest.2020-09-06-TCGA-LUAD.txt", None, 530, ""),
        ("hipt_lung_splits_0.csv", None, 0, "list of splits"),
        ("hipt_lung_splits_0_bool.csv", None, 0, "list of splits"),
        ("hipt_lung_splits_0_descriptor.csv", None, 0, "list of splits"),
        ("hipt_tcga_kidney_subset.csv.zip", None, 0, "zip archive (tcga_kidney_subset.csv)"),
        ("kather_TCGA-LUAD-DX_CLINI.xlsx", None, 0, "only 'PATIENT': a table of patients"),
        ("kather_TCGA-LUAD-DX_SLIDE.csv", "svs", 541, ""),
        ("mhim_label_c16.csv", "tif", 0, "header line is missing"),
        ("ncrf_tumor_valid_coords.txt", "tif", 0, "header line is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ext", "n", "words"), _REAL_TABLES)
def test_real_tables_are_read_or_refused_precisely(
    shared_data: Path, name: str, ext: str | None, n: int, words: str
) -> None:
    """Tables in the wild give all their rows, or one line that says what they are."""
    path = shared_data / "manifests" / name
    if n:
        manifest = load_manifest(path, ext=ext, slide_root="/slides", check_files=False)
        assert len(manifest) == n
        assert all(slide_stem(r.slide_path) == r.slide_id for r in manifest)
    else:
        with pytest.raises(ManifestError) as info:
            load_manifest(path, ext=ext, check_files=False)
        assert len(info.value.problems) == 1
        assert words in info.value.problems[0]


def test_no_real_table_is_left_out(shared_data: Path) -> None:
    """What is expected of each is said above."""
    assert {p.name for p in (shared_data / "manifests").iterdir()} == {name for name, *_ in _REAL_TABLES}


def test_the_unpacked_table_of_hipt_is_read(shared_data: Path, tmp_path: Path) -> None:
    """An index column, ids that end in .svs and numbers with .0 come through untouched."""
    with zipfile.ZipFile(shared_data / "manifests" / "hipt_tcga_kidney_subset.csv.zip") as archive:
        archive.extractall(tmp_path)
    manifest = load_manifest(
        tmp_path / "tcga_kidney_subset.csv", label_columns=("oncotree_code",), slide_root="/s", check_files=False
    )
    r = manifest.records[0]
    assert (r.slide_id, r.slide_path) == (
        "TCGA-4A-A93X-01Z-00-DX2.45011BF1-FED8-4D22-B5E1-C63DC384FD2A.svs",
        "/s/TCGA-4A-A93X-01Z-00-DX2.45011BF1-FED8-4D22-B5E1-C63DC384FD2A.svs",
    )
    assert (r.patient_id, r.label, r.site, r.carried["age"]) == ("TCGA-4A-A93X", "PRCC", "4A", "58.0")
