"""Downloads from several real local servers, some of them slow, down, cut off or with another file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Official
from file_server import CONTENT, DOWN, Server, remote, serving

from fastcifar.data import mirrors
from fastcifar.data.dataset import PUBLISHED
from fastcifar.data.fetch import fetch
from fastcifar.data.server import LIMITS, Limits
from fastcifar.data.store import dataset_path, download_dataset
from fastcifar.errors import DataError

HALF = len(CONTENT) // 2
LIMITS_OF_TESTS = Limits(silence=2, slow=200e3, window=0.3)
Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server with these attributes."""
    with ExitStack() as stack:

        def one(**attributes: object) -> Server:
            server = stack.enter_context(serving(Server()))
            vars(server).update(attributes)
            return server

        yield one


def sentences(target: Path, *urls: str) -> list[str]:
    """What is said during a download to `target`, which succeeds, from these addresses."""
    told: list[str] = []
    fetch(remote(*urls), target, note=told.append, limits=LIMITS_OF_TESTS)
    assert target.read_bytes() == CONTENT and not target.with_name("archive.part").exists()
    return told


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "archive.part"


def test_the_first_good_server_is_the_only_one(start: Start, target: Path) -> None:
    first, second = start(), start()
    told = sentences(target, first.url, second.url)
    assert told == [f"Downloading from {first.name}."]
    assert second.requested == []


def test_a_server_that_is_down_is_left(start: Start, target: Path) -> None:
    good = start()
    told = sentences(target, DOWN, good.url)
    assert told == [
        "Downloading from 127.0.0.1:9.",
        f"127.0.0.1:9 cannot be reached (Connection refused): downloading from {good.name}.",
    ]


def test_a_slow_server_is_left_and_the_next_goes_on_there(start: Start, target: Path) -> None:
    slow, good = start(rate=50_000), start()
    told = sentences(target, slow.url, good.url)
    assert slow.requested == [0] and len(good.requested) == 1 and 0 < good.requested[0] < HALF
    assert told[1].startswith(f"{slow.name} is slow (") and told[1].endswith(f"): going on with {good.name}.")


def test_where_all_are_slow_it_is_back_to_the_fastest(start: Start, target: Path) -> None:
    servers = [start(rate=rate) for rate in (30_000, 120_000, 60_000)]
    told: list[str] = []

    def note(sentence: str) -> None:
        told.append(sentence)
        if "back to" in sentence:  # the rest need not take ten seconds
            for server in servers:
                server.rate = 3e6

    fetch(remote(*(server.url for server in servers), DOWN), target, note=note, limits=LIMITS_OF_TESTS)
    assert target.read_bytes() == CONTENT
    assert [len(server.requested) for server in servers] == [1, 2, 1]
    assert servers[1].requested[1] > servers[2].requested[0] > servers[1].requested[0] > servers[0].requested[0]
    assert "cannot be reached (Connection refused): no other is left, back to " + servers[1].name in told[-1]


def test_the_fastest_slow_one_breaks_off_and_the_next_takes_over(start: Start, target: Path) -> None:
    fast, slow = start(rate=120_000), start(rate=60_000)
    told: list[str] = []

    def note(sentence: str) -> None:
        told.append(sentence)
        if f"back to {fast.name}" in sentence:
            fast.status, slow.rate = 503, 3e6

    fetch(remote(fast.url, slow.url), target, note=note, limits=LIMITS_OF_TESTS)
    assert target.read_bytes() == CONTENT
    assert f"{fast.name} answered 503 (Service Unavailable): no other is left, back to {slow.name}" in told[-1]


def test_a_server_that_becomes_slow_is_left_too(start: Start, target: Path) -> None:
    fading, good = start(rate=600_000), start()

    def progress(what: str, done: int, total: int | None) -> None:
        if done > HALF:
            fading.rate = 20_000

    fetch(remote(fading.url, good.url), target, progress, limits=LIMITS_OF_TESTS)
    assert target.read_bytes() == CONTENT and HALF < good.requested[0] < len(CONTENT)


def test_a_server_that_breaks_off_is_left_and_the_next_goes_on_there(start: Start, target: Path) -> None:
    cut, good = start(cut_after=100_000), start()
    told = sentences(target, cut.url, good.url)
    assert cut.requested == [0, 100_000, 200_000] and good.requested == [300_000]
    assert told[1] == f"{cut.name} broke off 3 times: going on with {good.name}."


def test_a_server_with_another_file_of_the_same_size(start: Start, target: Path) -> None:
    liar, good = start(content=CONTENT[:-1] + b"x"), start()
    told = sentences(target, liar.url, good.url)
    assert liar.requested == [0] and good.requested == [0]
    assert f"{liar.name} gave another file than the published one" in told[1]


def test_a_server_with_another_file_of_another_size(start: Start, target: Path) -> None:
    liar, good = start(content=CONTENT + b"x"), start()
    told = sentences(target, liar.url, good.url)
    assert f"{liar.name} has another file than the published one" in told[1]


def test_parts_that_do_not_fit_are_downloaded_anew_from_one_server(start: Start, target: Path) -> None:
    liar, good = start(content=b"\x1f\x8b" + b"x" * (len(CONTENT) - 2), cut_after=100_000), start()
    told = sentences(target, liar.url, good.url)
    assert good.requested == [300_000, 0]
    assert told[2] == f"What came in several parts is not the published file: downloading from {good.name}."


def test_anew_from_the_one_that_lies_then_from_the_others(start: Start, target: Path) -> None:
    good, liar = start(cut_after=100_000), start(content=CONTENT[:-1] + b"x")
    told: list[str] = []

    def note(sentence: str) -> None:
        told.append(sentence)
        if "another file" in sentence:
            good.cut_after = None

    assert fetch(remote(good.url, liar.url), target, note=note, limits=LIMITS_OF_TESTS) == good.url
    assert target.read_bytes() == CONTENT
    assert liar.requested == [300_000, 0] and good.requested[-1] == 0


def test_anew_only_once(start: Start, target: Path, part: Path) -> None:
    liars = [start(content=CONTENT[:-1] + bytes([number])) for number in (1, 2)]
    part.write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="None of 2 servers gave the file .*checksum is wrong"):
        fetch(remote(*(liar.url for liar in liars)), target)
    assert [liar.requested for liar in liars] == [[1000, 0], [0]]
    assert not target.exists() and not part.exists()


def test_where_no_server_has_it_each_reason_is_named(start: Start, target: Path) -> None:
    lost, page = start(status=404), start(kind="text/html")
    with pytest.raises(DataError) as caught:
        fetch(remote(DOWN, lost.url, page.url), target)
    assert str(caught.value) == (
        f"None of 3 servers gave the file (127.0.0.1:9 cannot be reached (Connection refused); {lost.name} answered "
        f"404 (Not Found); {page.name} sent a web page, not an archive): import a copy with `fastcifar download --from "
        "PATH`, name a mirror with --url, or use `--dataset shapes`."
    )


def test_the_limits_are_those_of_the_documentation() -> None:
    assert (LIMITS.slow, LIMITS.window, LIMITS.silence, LIMITS.attempts) == (500e3, 10, 15, 3)


# ------------------------------------------------------------------------------------------------ published datasets


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_list_of_mirrors(name: str) -> None:
    from torchvision import datasets

    official = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    archive = mirrors.remote_archive(name)
    assert official.url in archive.urls and archive.md5 == official.tgz_md5
    assert len(archive.urls) > 2 and all(url.startswith("https://") for url in archive.urls)
    assert len(set(archive.urls)) == len(archive.urls)
    assert len(archive.sha256) == 64 and 169e6 < archive.size < 171e6
    assert mirrors.remote_archive(name, "http://mirror/x").urls == ("http://mirror/x",)


@pytest.fixture
def published(official: Official, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive in place of the published one: its bytes, with the official address alone in the list."""
    content = official.archive.read_bytes()
    copies = {"urls": ["official"], "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(mirrors, "MIRRORS", {"cifar10": copies})
    monkeypatch.setattr(mirrors, "published_facts", lambda name: official.facts)
    return content


def test_download_from_a_mirror_gives_the_dataset(published: bytes, start: Start, no_home: Path) -> None:
    server = start(content=published)
    dataset = download_dataset("cifar10", server.url)
    assert dataset.published and len(dataset.train.labels) == 40 and dataset.source == server.url
    assert [path.name for path in no_home.iterdir() if not path.name.startswith(".")] == ["cifar10.pt"]
    download_dataset("cifar10", server.url)  # on this machine already: nothing is requested again
    assert len(server.requested) == 1


def test_the_mirrors_follow_the_official_address(published: bytes, start: Start) -> None:
    server = start(content=published)
    mirrors.MIRRORS["cifar10"]["urls"].append(server.url)
    told: list[str] = []
    assert download_dataset("cifar10", note=told.append).source == server.url
    assert told == [
        "Downloading from 127.0.0.1:9.",
        f"127.0.0.1:9 cannot be reached (Connection refused): downloading from {server.name}.",
    ]


def test_an_address_of_the_users_own_is_tried_alone(published: bytes, start: Start) -> None:
    server = start(content=published)
    mirrors.MIRRORS["cifar10"]["urls"].append(server.url)
    with pytest.raises(DataError, match="^http://127.0.0.1:9/x cannot be reached .Connection refused.: import"):
        download_dataset("cifar10", "http://127.0.0.1:9/x")
    assert server.requested == []


def test_an_archive_that_is_whole_is_not_downloaded_again(published: bytes, official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(published)
    dataset = download_dataset("cifar10")  # there is no server at the address
    assert dataset.source == official.facts.url
    assert not (no_home / official.facts.archive).exists()


def test_a_dataset_that_is_here_is_verified_not_trusted(published: bytes, official: Official, no_home: Path) -> None:
    no_home.mkdir()
    (no_home / official.facts.archive).write_bytes(published)
    kept = dataset_path("cifar10")
    content = download_dataset("cifar10").train.images.numpy().tobytes()[:64]
    changed = bytearray(kept.read_bytes())
    changed[changed.index(content)] ^= 1
    kept.write_bytes(changed)
    with pytest.raises(DataError, match="content has changed"):
        download_dataset("cifar10", "http://127.0.0.1:9/mirror")
