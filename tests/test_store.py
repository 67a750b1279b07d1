"""Artefacts: whole or absent, shards that survive a kill, and damage that is found."""

from __future__ import annotations

import errno
import os

import pyarrow as pa
import pytest

from inranker.errors import InputError
from inranker.store import Manifest, atomic_folder, atomic_write, read_json, read_parquet, run_sharded, write_json

SCHEMA = pa.schema([("x", pa.int64())])


def run(folder, items, log, fail_at=None, settings=None, shard_size=3):
    def work(part):
        for x in part:
            if x == fail_at:
                raise KeyboardInterrupt
            log.append(x)
        return [{"x": x * x} for x in part]

    manifest = Manifest("square", settings or {"power": 2})
    return run_sharded(
        folder, items, work, manifest=manifest, schema=SCHEMA, shard_size=shard_size, output="out.parquet"
    )


def test_an_interrupted_stage_repeats_one_shard_and_ends_the_same(tmp_path):
    whole = run(tmp_path / "a", range(10), [])
    log = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", range(10), log, fail_at=7)
    assert not (tmp_path / "b" / "out.parquet").exists()
    again = run(tmp_path / "b", range(10), log)
    assert again.read_bytes() == whole.read_bytes()
    assert len(log) <= 10 + 3 and set(log) == set(range(10))
    assert not (tmp_path / "b" / "shards").exists()


def test_a_finished_stage_is_left_alone_until_its_settings_or_its_file_change(tmp_path):
    log = []
    path = run(tmp_path, range(4), log)
    run(tmp_path, range(4), log)
    assert len(log) == 4
    path.write_bytes(b"garbage")
    run(tmp_path, range(4), log)
    assert len(log) == 8 and read_parquet(path)["x"].to_pylist() == [0, 1, 4, 9]
    run(tmp_path, range(4), log, settings={"power": 3})
    assert len(log) == 12


def test_a_corrupted_shard_is_found_and_done_again(tmp_path):
    log = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, range(10), log, fail_at=9)
    shard = next((tmp_path / "shards").rglob("00001.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    path = run(tmp_path, range(10), log)
    assert read_parquet(path)["x"].to_pylist() == [x * x for x in range(10)]
    assert log.count(3) == 2 and log.count(0) == 1


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "values.json"
    write_json(path, {"old": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["values.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with atomic_folder(target) as folder:
        (folder / "whole").write_text("x")
    assert (target / "whole").read_text() == "x"


def test_damaged_json_is_named_by_line(tmp_path):
    path = tmp_path / "x.json"
    with atomic_write(path) as file:
        file.write('{\n"a": 1,\n"b" 2}')
    with pytest.raises(InputError, match=rf"{path}:3: not JSON"):
        read_json(path)
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_parquet(path)
    with pytest.raises(InputError, match="no such file"):
        read_parquet(tmp_path / "absent.parquet")
