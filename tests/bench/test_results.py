"""Results files: what survives a kill or a full disk, what may be added to one, what can be read and pooled."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import FIXTURES, HERE, THERE, header, lines_of, run, write

from fastcifar.bench.records import RunRecord
from fastcifar.bench.results import Results, ResultsFile, load, merge
from fastcifar.errors import DataError, UsageError
from fastcifar.recipes.parse import load_recipe


def test_a_broken_tail_is_cut_and_a_broken_middle_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with ResultsFile(path, header("tiny")) as file:
        file.add(run("tiny", 0, 0.5))
        file.add(run("tiny", 1, 0.6))
    whole = path.read_bytes()
    for tail in (b'{"name": "ti', b"\x00\x00\n", b"{}trash\n"):
        path.write_bytes(whole + tail)
        with ResultsFile(path, header("tiny")) as file:
            assert [each.seed for each in file.runs] == [0, 1]
        assert path.read_bytes() == whole
    for good, broken in (
        (b'{"name": "tiny", "r', b"{broken"),
        (b'{"name": "tiny", "r', b'{"r'),
        (b'"seed": 0', b'"seed": "0"'),
    ):
        assert whole.count(good)
        path.write_bytes(whole.replace(good, broken, 1))
        with pytest.raises(DataError, match="Line 2"), ResultsFile(path, header("tiny")):
            pass


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    runs = [
        run("tiny", 0, 0.5, fraction=0.25, wall_s=2.0, other_load=0.3, flops=7, peak_memory=9, accuracy_on="the moon"),
        run("tiny", 1, None, error="Out of memory."),
    ]
    with ResultsFile(tmp_path / "r.jsonl", header("tiny")) as file:
        for each in runs:
            file.add(each)
    assert load(tmp_path / "r.jsonl") == Results(tmp_path / "r.jsonl", header("tiny"), runs)
    assert {"name", "recipe", "seed", "accuracy", "train_s"} <= lines_of(tmp_path / "r.jsonl")[1].keys()


def test_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with ResultsFile(path, header("tiny")):
        pass
    recipes = {"tiny": load_recipe("tiny", "training.epochs=2"), "b": load_recipe("hlb")}
    other = header("tiny", device="another", recipes=recipes)
    words = "device was a CPU, 2 threads, is another.*'b' is not in it.*'tiny' differs in training.epochs"
    with pytest.raises(UsageError, match=words), ResultsFile(path, other):
        pass
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    with pytest.raises(DataError, match="another version"), ResultsFile(path, header("tiny")):
        pass
    path.write_text("something else\n")
    with pytest.raises(DataError, match="no results file"), ResultsFile(path, header("tiny")):
        pass
    path.write_text('{"kind": "fastcifar bench", "format": 2}\n')
    with pytest.raises(DataError, match="damaged"), ResultsFile(path, header("tiny")):
        pass


def test_a_reworded_summary_is_no_other_recipe(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r.jsonl", header("tiny")) as file:
        file.add(run("tiny", 0, 0.5))
    reworded = dataclasses.replace(load_recipe("tiny"), summary="small")
    with ResultsFile(tmp_path / "r.jsonl", header("tiny", recipes={"tiny": reworded})) as file:
        assert len(file.runs) == 1


def test_a_file_in_use_or_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with ResultsFile(path, header("tiny")), pytest.raises(DataError, match="open in another bench"):
        ResultsFile(path, header("tiny")).__enter__()
    with ResultsFile(path, header("tiny")):  # the lock was given back by both
        pass
    with pytest.raises(DataError, match="no regular file"), ResultsFile(Path("/dev/full"), header("tiny")):
        pass
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResultsFile(path, header("tiny")) as file:
        file.add(run("tiny", 0, 0.5))
        before = path.read_bytes()
        try:  # no file may grow beyond that: as good as a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
            with pytest.raises(DataError, match="cannot be written"):
                file.add(run("tiny", 1, 0.5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.glob("[!.]*") if each.name != "home"] == [path.name], "but for the lock"


# --------------------------------------------------------------------------------------- files of the format before


def test_a_bench_of_format_1_is_read() -> None:
    bench = load(FIXTURES / "format1" / "bench.jsonl")
    assert [(each.name, each.seed, each.fraction) for each in bench.runs] == [
        ("tiny", 0, 1.0),
        ("narrow", 0, 1.0),
        ("narrow", 1, 1.0),
        ("tiny", 1, 1.0),
    ]
    assert bench.runs[0].accuracy == 0.1 and bench.runs[0].other_load is None and bench.runs[0].engine == "compiled"
    assert bench.header.recipes["narrow"].optimizer.filters.lr == 0.01
    assert bench.header.precision == {"tiny": "float32", "narrow": "float32"}, "half is for CUDA"


def test_a_search_of_format_1_has_its_lengths_as_fractions() -> None:
    search = load(FIXTURES / "format1" / "search.jsonl")
    assert list(search.header.recipes) == ["base", "wide", "slow"]
    assert {each.training.epochs for each in search.header.recipes.values()} == {0.05}, "at full length"
    assert {(each.name, each.fraction) for each in search.runs} == {
        *((name, 0.25) for name in ("base", "wide", "slow")),
        *((name, fraction) for name in ("base", "slow") for fraction in (0.5, 1.0)),
    }
    assert search.header.engine == {"base": "compiled", "wide": "compiled", "slow": "compiled"}


def test_a_run_folder_counts_as_a_run() -> None:
    bench = load(FIXTURES / "format1" / "bench.jsonl")
    trained = load(FIXTURES / "format1" / "run")
    assert trained == load(FIXTURES / "format1" / "run" / "run.json")
    (one,) = trained.runs
    assert (one.name, one.seed, one.accuracy, one.flops) == ("tiny", 3, 0.1, 7342552000)
    assert one.machine == bench.runs[0].machine, "whether torch's version is written with +cu130 or without"
    pool = merge([bench, trained])
    assert [each.seed for each in pool.runs if each.name == "tiny"] == [3, 0, 1]


@pytest.mark.parametrize("change", [{"seed": "x"}, {"settings": None}, {"accuracy": None}, {"device": None}])
def test_a_damaged_run_folder_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    document = json.loads((FIXTURES / "format1" / "run" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(DataError):
        load(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------------------------- pooling


def part(where: str, seeds: range, **changes: Any) -> Results:
    made = header("tiny", **changes)
    return Results(Path(where), made, [run("tiny", seed, 0.5, machine=made.machine) for seed in seeds])


def test_runs_are_pooled_whatever_their_machine() -> None:
    gpu = {"device": THERE.device, "threads": None, "torch": "3.0.0+cu140", "code": "another", "version": "9"}
    pool = merge([part("a", range(2)), part("b", range(2, 4), **gpu)])
    assert sorted(each.seed for each in pool.runs) == [0, 1, 2, 3] and list(pool.recipes) == ["tiny"]
    assert pool.device is None and merge([part("a", range(2))]).device == HERE.device


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": {"name": "cifar10", "digest": "e", "published": True}}, "different images"),
        ({"dataset": {"name": "shapes", "digest": None, "published": False}}, "different images"),
        ({"precision": {"tiny": "half"}}, "precision"),
        ({"recipes": {"tiny": load_recipe("tiny", "training.epochs=3")}}, "training.epochs"),
    ],
)
def test_what_cannot_be_pooled_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        merge([part("a", range(2)), part("b", range(2, 4), **changes)])


def test_a_seed_in_two_files_is_refused() -> None:
    with pytest.raises(UsageError, match="Seed 1 of 'tiny' in b is in another file too"):
        merge([part("a", range(2)), part("b", range(1, 3))])


def test_a_record_without_a_digest_is_known_by_the_name_of_its_dataset() -> None:
    before = {"name": "cifar10", "digest": None, "published": True}
    assert len(merge([part("a", range(2)), part("b", range(2, 4), dataset=before)]).runs) == 4


def test_a_line_with_keys_of_a_later_version_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", header("tiny"), [])
    with path.open("a") as file:
        file.write(json.dumps({**run("tiny", 0, 0.5).line(), "phase_of_the_moon": 0.3}) + "\n")
    assert load(path).runs == [run("tiny", 0, 0.5)]
    assert isinstance(load(path).runs[0], RunRecord)
