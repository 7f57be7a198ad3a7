"""The run folder: where results live, and the rule by which one counts as finished.

A file appears under its final name only when it is whole (temporary name in the same folder, fsync, rename, fsync of
the folder). A slide is finished when its `state.json`, written last, names the hashes of its inputs, settings and
outputs and all of them still hold. Nothing else is believed: not that a file exists, not a lock.

Others may be able to write into the folder. Whatever they put there, nothing outside it is read as a part of the run,
written or removed: names are checked, and no link below the folder is followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.files import is_inside, is_regular, open_journal, open_new, read_regular, remove_leftovers
from wsi_ips.locking import Held, sole_writer
from wsi_ips.results import SCHEMA_VERSION, sha256_file
from wsi_ips.slidefiles import is_slide_id
from wsi_ips.stopping import stopped, write_whole
from wsi_ips.tables import shown, table_bytes

_OURS = {"slides", "log.jsonl"}  # what a start leaves, beside hidden files, that was killed before its run.json
_MOST_BYTES = 256 << 20  # of a JSON file; run.json of 100,000 slides takes 30 MB

__all__ = ["RunFolder"]

class RunFolder:
    """A run's files. Made by the leader with `start`; workers and later commands use it as it is."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._held: Held | None = None
        self._was_there = self._is_there()

    @contextlib.contextmanager
    def start(self) -> Iterator[RunFolder]:
        """Make the folder, prove that it can be written, and hold it against a second run.

        Raises:
            ConfigError: not a folder, not writable, made by a newer version, or held by another run (who is said).
            StoppedError: the environment gave out just then.
        """
        try:
            (self.path / "slides").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}"
            with open_new(probe) as f:
                f.write(b"wsi-ips")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be used as output folder ({error.strerror}); allow it, or give another folder (--out)"
            ) from error
        self._was_there = True
        self._check_version()
        with contextlib.ExitStack() as held:
            try:
                self._held = held.enter_context(sole_writer(self.path))
            except OSError as error:
                raise stopped(self.path / ".lock", error) from error
            remove_leftovers(self.path.iterdir())
            if self.parts_folder.is_symlink():  # not ours
                self.parts_folder.unlink()
            yield self

    def slide_folder(self, slide_id: str) -> Path:
        """Folder of one slide's files.

        Raises:
            ConfigError: an id that could name a place elsewhere.
        """
        if not is_slide_id(slide_id):  # of a manifest it is checked; of a run.json from elsewhere it is not
            raise ConfigError(f"{self.path}: {shown(slide_id)} cannot name a slide's folder; was run.json edited?")
        return self.path / "slides" / slide_id

    @property
    def parts_folder(self) -> Path:
        """What unfinished passes have encoded, where no embedding cache takes it; gone when a run comes to its end."""
        return self.path / ".parts"

    def slide_file(self, slide_id: str, name: str) -> Path:
        """Find a file of a slide, to be read: a regular one inside the slide's folder.

        Raises:
            FileNotFoundError: there is none; a link, or what lies behind one, does not count.
        """
        folder = self.slide_folder(slide_id)
        path = folder / name
        above = [p for p in path.parents if p.is_relative_to(folder)]
        if not is_inside(name) or not is_regular(path) or any(p.is_symlink() for p in (folder.parent, *above)):
            raise FileNotFoundError(errno.ENOENT, "no such file in the run folder", str(path))
        return path

    def write_slide(
        self, slide_id: str, files: Mapping[str, bytes], record: Mapping[str, Any], *, keep: Iterable[str] = ()
    ) -> None:
        """Write a slide's files, then, last, its record.

        Args:
            files: content by name relative to the slide's folder.
            record: what `state.json` says beside the outputs' hashes.
            keep: files added earlier that belong to this result, too; those that are whole stay. All others go.
        """
        folder = self._own_folder(slide_id, files)
        remove_leftovers(folder.rglob(".*"))
        outputs = (self.read_record(slide_id) or {}).get("outputs", {})
        kept = {n: outputs[n] for n in keep if n in outputs and n not in files and self._is_whole(slide_id, n, outputs[n])}
        for name, data in files.items():
            write_whole(folder / name, data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
        whole = {"schema_version": SCHEMA_VERSION, "slide_id": slide_id, **record, "outputs": hashes | kept}
        if kept:
            whole["added"] = sorted(kept)
        write_whole(folder / "state.json", json.dumps(whole, indent=1, sort_keys=True).encode())
        for stale in set(outputs) - set(files) - set(kept):  # ours alone: whatever else lies there is not touched
            (folder / stale).unlink(missing_ok=True)

    def add_files(
        self, slide_id: str, files: Mapping[str, bytes], facts: Mapping[str, Any] | None = None, *,
        drop: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Write further files of a slide, or newer ones; its other files and its record stay.

        Args:
            files: content by name relative to the slide's folder.
            facts: of the record, to set anew.
            drop: names of its outputs that go, unless they are among `files`.

        Raises:
            ConfigError: the slide has no record, or a file would lie outside its folder.
        """
        record, folder = self.read_record(slide_id), self._own_folder(slide_id, files)
        if record is None:
            raise ConfigError(f"{slide_id}: has no record in {self.path}; classify it first")
        remove_leftovers(folder.rglob(".*"))
        for name, data in files.items():
            write_whole(folder / name, data)
        gone = {name for name in drop if name in record["outputs"] and name not in files}
        kept = {name: digest for name, digest in record["outputs"].items() if name not in gone}
        new = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        added = {*record.get("added", ()), *(name for name in new if name not in record["outputs"])} - gone
        whole = {**record, **(facts or {}), "outputs": kept | new, "added": sorted(added)}
        write_whole(folder / "state.json", json.dumps(whole, indent=1, sort_keys=True).encode())
        for name in gone:
            (folder / name).unlink(missing_ok=True)

    def read_record(self, slide_id: str) -> dict[str, Any] | None:
        """Read a slide's record; None when there is none that can be read, or one that names files elsewhere."""
        try:
            record = json.loads(read_regular(self.slide_file(slide_id, "state.json"), _MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
            return None
        outputs, added = record.get("outputs"), record.get("added", [])
        is_sound = isinstance(outputs, dict) and isinstance(added, list) and all(map(is_inside, outputs))
        return record if is_sound else None

    def is_finished(self, slide_id: str, identity: Mapping[str, Any], *, retry_failed: bool = False) -> bool:
        """Tell whether a slide need not be done again.

        Args:
            identity: what must be equal to the record's `identity` (hashes of model, settings, row and file).
            retry_failed: a failed slide is done again.

        Files that were added later prove nothing about the label, and need not be whole.
        """
        record = self.read_record(slide_id)
        if record is None or record.get("identity") != dict(identity):
            return False
        if record["status"] == "failed" and retry_failed:
            return False
        added = set(record.get("added", ()))
        return all(self._is_whole(slide_id, name, digest) for name, digest in record["outputs"].items() if name not in added)

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file beside run.json.

        Raises:
            StoppedError: the environment gave out.
        """
        self._check_there()
        write_whole(self.path / name, data)

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        """Write a CSV beside run.json; see `write_file`."""
        self.write_file(name, table_bytes(columns, rows))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file beside predictions.csv; see `write_file`."""
        self.write_file(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            ConfigError: the folder is not a run.
        """
        try:
            found = json.loads(read_regular(self.path / name, _MOST_BYTES))
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path}: not a run folder (there is no {name} in it)") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.path}: not a run folder ({name} cannot be read: {error})") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.path}: not a run folder ({name} holds no JSON object)")
        return found

    def facts(self) -> dict[str, Any]:
        """What an earlier start wrote into run.json; nothing before the first."""
        return self.read_json("run.json") if (self.path / "run.json").exists() else {}

    def log(self, event: str, **facts: Any) -> None:
        """Append a line to log.jsonl, which stays on this machine: it may hold paths.

        Raises:
            StoppedError: it cannot be written, or another run took the folder over.
        """
        if self._held is not None:
            self._held.check()
        self._check_there()
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **facts})
        try:
            with open(self.path / "log.jsonl", "a", encoding="utf-8", opener=open_journal) as f:
                f.write(line + "\n")
        except OSError as error:
            raise stopped(self.path / "log.jsonl", error) from error

    def _check_there(self) -> None:
        """Refuse to make a folder again that vanished: behind it may lie the bare mount point of a disk that is gone."""
        if self._was_there and not self._is_there():
            raise stopped(self.path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))

    def _is_there(self) -> bool:
        return (self.path / "slides").is_dir()

    def _check_version(self) -> None:
        if not (self.path / "run.json").exists():
            foreign = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS and p.name[0] != ".")
            if foreign:
                raise ConfigError(
                    f"{self.path}: holds other files ({', '.join(foreign[:3])}) and no run; give another --out"
                )
            return
        version = self.read_json("run.json").get("schema_version", 0)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path}: made by a newer wsi-ips (schema_version {version}); update, or give another --out"
            )

    def _own_folder(self, slide_id: str, names: Iterable[str]) -> Path:
        """Name the folder that a slide's files are written into, after a look at where they would go."""
        folder = self.slide_folder(slide_id)
        self._check_there()
        for name in names:
            if not is_inside(name):
                raise ConfigError(f"{slide_id}: {name!r} would be written outside the slide's folder")
        folders = {folder.parent, folder, *((folder / name).parent for name in names)}
        if link := next((p for p in folders if p.is_symlink()), None):
            raise StoppedError(f"{link}: is a link, which is not written through; remove it and run the same command again")
        return folder

    def _is_whole(self, slide_id: str, name: str, digest: str) -> bool:
        try:
            return sha256_file(self.slide_file(slide_id, name)) == digest
        except OSError:
            return False
