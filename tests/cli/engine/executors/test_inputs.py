"""Files of a recipe on a machine that has none of them: listed, brought, checked, kept."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import COMMIT, cache_repo, sprites_files
from far_recipe import SPRITES, far_recipe

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.engine.executors import input_store, inputs
from flowblend_cli.engine.executors.base import Answer, RenderRequest
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor, Process
from flowblend_cli.engine.executors.input_store import InputStore, lacking
from flowblend_cli.engine.executors.inputs import (
    FilePieces,
    Input,
    InputFile,
    InputList,
    fingerprint,
    placed,
)
from flowblend_cli.errors import FileChangedError
from flowblend_cli.events import CapturedEvents, Event, JobDone, JobFailed
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.utils.worker_process import Document, WorkerProcess
from flowblend_plugin.preview import PROJECTION_NAME

TESTS = Path(__file__).parents[3]


class FarExecutor(ChildProcessExecutor):
    """A worker on a machine without the recipe's folder, which is away while it works."""

    def __init__(self, folder: Path, cache: Path) -> None:
        super().__init__()
        self._folder, self._cache = folder, cache
        self._list = InputList()
        self._pieces: dict[tuple[str, int], bytes] = {}
        self.spoiled = ""  # name of a file that is changed since it was listed
        self.asked: list[str] = []

    def _start_process(self) -> Process:
        given = os.environ.get("PYTHONPATH")
        paths = os.pathsep.join([str(TESTS), *([given] if given else [])])
        around = {
            "PYTHONPATH": paths,
            "XDG_CACHE_HOME": str(self._cache),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        return WorkerProcess("far_worker", "far", around)

    def _sent_beside(self, request: RenderRequest) -> Document:
        found = self._list.of_request(request)
        self._pieces = {
            (file.sha256, 0): b"other" if file.name == self.spoiled
            else Path(one.folder, file.name).read_bytes()
            for one in found.values() for file in one.files
        }  # fmt: skip
        self._folder.rename(self._folder.with_suffix(".away"))
        return {"inputs": {place: one.to_document() for place, one in found.items()}}

    def _heard(self, request: RenderRequest, document: Document) -> Answer | Event | None:
        if document["say"] != "lacks":
            return super()._heard(request, document)
        self.asked.append(document["sha256"])
        data = base64.b64encode(self._pieces[document["sha256"], document["piece"]]).decode()
        assert self._worker is not None
        self._worker.send({**document, "do": "give", "data": data})
        return None

    def _answer(self, answer: Answer) -> Answer:
        self._folder.with_suffix(".away").rename(self._folder)
        return super()._answer(answer)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return far_recipe(tmp_path_factory.mktemp("recipe") / "folder")


def test_a_machine_without_any_file_of_the_recipe_makes_the_same_file_of_it(
    recipe: Path, tmp_path: Path
) -> None:
    here, there = (
        load_batch(recipe, (), tmp_path / "here"),
        load_batch(recipe, (), tmp_path / "far"),
    )
    told = CapturedEvents()
    assert BatchRun(here, told).run() == 0, told.messages
    executor = FarExecutor(recipe.parent, tmp_path / "cache")
    assert BatchRun(there, told, executor=executor).run() == 0, told.messages

    one, other = told.of(JobDone)
    assert one.pixels_sha256 == other.pixels_sha256
    documents = [read_document(Path(event.path)) for event in (one, other)]
    assert all(documents)
    for document in documents:
        del document["resolved"]["sampling_s"]
    assert documents[0] == documents[1]
    assert len(set(executor.asked)) == len(executor.asked) > 10
    files = [path for path in (tmp_path / "far").rglob("*") if path.is_file()]
    assert not [path for path in files if str(tmp_path / "cache").encode() in path.read_bytes()]


@pytest.mark.night
def test_another_run_finds_the_files_on_that_machine(recipe: Path, tmp_path: Path) -> None:
    batch, told = load_batch(recipe, (), tmp_path / "far"), CapturedEvents()
    asked = []
    for _ in range(2):
        executor = FarExecutor(recipe.parent, tmp_path / "cache")
        assert BatchRun(batch, told, executor=executor, anew=True).run() == 0, told.messages
        asked.append(len(executor.asked))
    assert asked[0] > 10
    assert asked[1] == 0
    assert len({event.pixels_sha256 for event in told.of(JobDone)}) == 1


def test_a_file_that_was_changed_since_it_was_listed_fails_its_job_and_is_named(
    recipe: Path, tmp_path: Path
) -> None:
    told = CapturedEvents()
    executor = FarExecutor(recipe.parent, tmp_path / "cache")
    executor.spoiled = "large.safetensors"
    batch = load_batch(recipe, (), tmp_path / "far")

    assert BatchRun(batch, told, executor=executor).run() == 1

    (failed,) = told.of(JobFailed)
    name = recipe.parent / "lora/large.safetensors"
    assert f"{name} was changed or removed since this run began" in failed.error
    assert failed.error.startswith("FileChangedError: ")


def request_of(recipe: Path) -> RenderRequest:
    (job,) = load_batch(recipe, (), recipe.parent / "out").jobs
    return RenderRequest(1, job, 1, resolve_models(job.model, recipe.parent, job.adapters))


def test_what_loading_reads_is_listed_and_nothing_else(recipe: Path) -> None:
    stray = [recipe.parent / "pair" / name for name in ("a.bin", "README.md", "vae/a.py")]
    for path in stray:
        path.write_bytes(b"x")
    found = InputList().of_request(request_of(recipe))
    for path in stray:
        path.unlink()

    names = {place: {file.name for file in one.files} for place, one in found.items()}
    pair = recipe.parent / "pair"
    assert names == {
        "pipeline": {p.relative_to(pair).as_posix() for p in pair.rglob("*") if p.is_file()},
        "small": {"config.json", "diffusion_pytorch_model.safetensors"},
        "LoRA mono large": {"large.safetensors"},
        "LoRA mono small": {"small.safetensors"},
        "pictures": {"pictures/first.png"},
    }
    assert PROJECTION_NAME in names["pipeline"]
    for one in found.values():
        for file in one.files:
            data = Path(one.folder, file.name).read_bytes()
            assert (file.sha256, file.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert Input.from_document(json.loads(json.dumps(one.to_document()))) == one


def test_the_file_that_scales_a_lora_travels_with_it(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    shutil.copy(recipe.parent / "lora/large.safetensors", path)
    (tmp_path / "adapter_config.json").write_text("{}")
    models = replace(request_of(recipe).models, adapters=(("peft", "large", str(path)),))

    found = InputList().of_models(models)["LoRA peft large"]
    assert [file.name for file in found.files] == [path.name, "adapter_config.json"]
    moved = placed(models, {"LoRA peft large": Path("/there")})
    assert moved.adapters == (("peft", "large", "/there/adapter_model.safetensors"),)


def test_loras_of_one_name_in_one_folder_are_told_apart(recipe: Path) -> None:
    models, listed = request_of(recipe).models, InputList()
    for file in ("large", "small"):
        path = recipe.parent / f"lora/{file}.safetensors"
        found = listed.of_models(replace(models, adapters=(("a", "large", str(path)),)))
        assert [one.name for one in found["LoRA a large"].files] == [path.name]


def test_a_piece_is_put_into_the_store_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inputs, "PIECE_BYTES", 4)
    put: list[bytes] = []
    files = FilePieces(lambda data: put.append(data) or data)
    files.know([an_input(tmp_path, a=b"0123456789")])
    digest = hashlib.sha256(b"0123456789").hexdigest()

    assert b"".join(files.get(digest, piece) for piece in (0, 1, 2)) == b"0123456789"
    assert [files.get(digest, piece) for piece in (2, 0)] == [b"89", b"0123"]
    assert put == [b"0123", b"4567", b"89"]

    monkeypatch.setattr(inputs, "_MOST_PIECES", 1)
    files.get(digest, 1)
    files.get(digest, 2)
    assert len(files._pieces) <= 3
    (tmp_path / "a").unlink()
    gone = FilePieces(lambda data: data)
    gone.know([Input(str(tmp_path), (InputFile("a", digest, 10),))])
    assert gone.get(digest, 0) is None


def an_input(folder: Path, **files: bytes) -> Input:
    """Files in a folder, as an input."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = [InputFile(n, hashlib.sha256(d).hexdigest(), len(d)) for n, d in files.items()]
    return Input(str(folder), tuple(listed))


class Driver:
    """Holds the files of inputs in memory, and counts what is asked for."""

    def __init__(self, *files: bytes) -> None:
        self.files = {hashlib.sha256(data).hexdigest(): data for data in files}
        self.asked = 0

    def bring(self, sha256: str, piece: int) -> bytes:
        self.asked += 1
        size = input_store.PIECE_BYTES
        return self.files[sha256][piece * size : (piece + 1) * size]


def elsewhere(wanted: Input) -> Input:
    """The input as a machine sees it that hasn't got its folder."""
    return replace(wanted, folder="/nowhere/on/this/machine")


def test_nothing_travels_where_the_same_path_has_the_same_bytes(tmp_path: Path) -> None:
    wanted, driver = an_input(tmp_path / "shared", a=b"same"), Driver(b"same")
    store = tmp_path / "store"
    assert InputStore(store).place({"x": wanted}, driver.bring) == {"x": tmp_path / "shared"}
    assert (driver.asked, store.exists()) == (0, False)

    (tmp_path / "shared/a").write_bytes(b"diff")  # as long as the driver's
    folder = InputStore(store).place({"x": wanted}, driver.bring)["x"]
    assert (folder / "a").read_bytes() == b"same"
    assert driver.asked == 1


def test_a_file_comes_in_pieces_and_what_was_damaged_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_store, "PIECE_BYTES", 4)
    wanted = elsewhere(an_input(tmp_path / "there", a=b"0123456789", b=b"", c=b"89ab"))
    driver = Driver(b"0123456789", b"", b"89ab")
    folder = InputStore(tmp_path / "store").place({"x": wanted}, driver.bring)["x"]
    assert [(folder / name).read_bytes() for name in "abc"] == [b"0123456789", b"", b"89ab"]
    assert driver.asked == 4

    (folder / "c").write_bytes(b"89ax")
    again = InputStore(tmp_path / "store").place({"x": wanted}, driver.bring)["x"]
    assert (again / "c").read_bytes() == b"89ab"
    assert driver.asked == 8


def test_other_bytes_than_were_listed_are_kept_nowhere(tmp_path: Path) -> None:
    wanted = elsewhere(an_input(tmp_path / "there", a=b"what was listed"))
    store = InputStore(tmp_path / "store")
    with pytest.raises(FileChangedError, match=r"/nowhere/on/this/machine/a was changed"):
        store.place({"x": wanted}, lambda *_: b"what it is now.")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["lock"]


def test_what_is_not_in_use_makes_room(tmp_path: Path) -> None:
    def one(letter: str) -> tuple[Input, Driver]:
        data = letter.encode() * 1000
        return elsewhere(an_input(tmp_path / letter, a=data)), Driver(data)

    def keys() -> set[str]:
        return {path.name for path in (tmp_path / "store").iterdir() if path.is_dir()}

    (first, brings_first), (second, brings_second), (third, brings_third) = map(one, "abc")
    (tmp_path / "store/left.tmp").mkdir(parents=True)
    holder, other = (InputStore(tmp_path / "store", most_bytes=2000) for _ in range(2))
    holder.place({"x": first}, brings_first.bring)
    assert keys() == {first.key}
    other.place({"x": second}, brings_second.bring)
    other.place({"x": third}, brings_third.bring)  # lets go of the second, but not yet
    assert keys() == {first.key, second.key, third.key}
    holder.place({}, brings_first.bring)
    other.place({"x": second}, brings_second.bring)
    os.utime(tmp_path / "store" / first.key, (1, 1))
    fourth, brings_fourth = one("d")
    other.place({"x": fourth}, brings_fourth.bring)
    assert first.key not in keys()
    assert {second.key, fourth.key} <= keys()


def test_no_room_is_said_with_what_is_needed(tmp_path: Path, monkeypatch: Any) -> None:
    wanted = elsewhere(an_input(tmp_path / "there", a=b"x" * 1000))
    monkeypatch.setattr(input_store, "_free_in", lambda folder: 999)
    with pytest.raises(OSError, match=r"store has no room: 1.0 kB are needed, 999 B are free"):
        InputStore(tmp_path / "store").place({"x": wanted}, Driver().bring)


def test_two_workers_of_one_machine_bring_a_file_once(tmp_path: Path) -> None:
    data = os.urandom(1000)
    wanted, driver = elsewhere(an_input(tmp_path / "there", a=data)), Driver(data)
    found: list[Path] = []

    def work() -> None:
        found.append(InputStore(tmp_path / "store").place({"x": wanted}, driver.bring)["x"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({*found}) == driver.asked == 1


REPO = "someone/sprites"


def in_cache(cache: Path, **changed: bytes) -> Path:
    files = {**sprites_files(), **{name.replace("__", "/"): data for name, data in changed.items()}}
    return cache_repo(cache, REPO, files)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Input]:
    """What a driver lists of a pair in its Hub cache; the cache is another one from then on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "drivers"))
    in_cache(tmp_path / "drivers")
    models = resolve_models(ModelSpec(REPO, REPO), tmp_path)
    found = [*InputList().of_models(models).values()]
    (tmp_path / "drivers").rename(tmp_path / "away")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "own"))
    return found


def test_a_repository_has_to_be_in_a_workers_own_cache(
    repository: list[Input], tmp_path: Path
) -> None:
    assert {(one.repo, one.commit) for one in repository} == {(REPO, COMMIT)}
    name = f"{REPO} at {COMMIT[:12]}"
    assert lacking(repository) == [f"{name} isn't in {tmp_path / 'own'}"]

    folder = in_cache(tmp_path / "own")
    assert lacking(repository) == []
    assert {input_store.repo_folder(one) for one in repository} == {folder}

    (folder / "vae/config.json").unlink()
    told = f"{name} is only half there: vae/config.json is missing in {folder}"
    assert lacking(repository) == [told]

    (folder / "vae/config.json").write_bytes(b"{}")
    told = f"{name} isn't the driver's: vae/config.json differ in {folder}"
    assert lacking(repository) == [told]
    with pytest.raises(Exception, match="isn't the driver's"):
        InputStore(tmp_path / "store").place({"pipeline": repository[0]}, Driver().bring)


def test_a_cache_that_all_machines_see_is_as_good(repository: list[Input], tmp_path: Path) -> None:
    (tmp_path / "away").rename(tmp_path / "drivers")
    assert lacking(repository) == []
    folder = Path(repository[0].folder)
    assert folder.is_relative_to(tmp_path / "drivers")
    assert input_store.repo_folder(repository[0]) == folder


@pytest.mark.parametrize("place", [0, 3, 1500, 2999])
def test_a_large_file_is_compared_by_samples_all_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(inputs, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(inputs, "_SAMPLE_BYTES", 100)
    data = bytearray(os.urandom(3000))
    (tmp_path / "a").write_bytes(data)
    before = fingerprint(tmp_path / "a")
    data[place] ^= 1
    (tmp_path / "a").write_bytes(data)
    assert fingerprint(tmp_path / "a") != before
    (tmp_path / "a").write_bytes(data[:-1])
    assert fingerprint(tmp_path / "a") != before


def test_other_code_of_the_same_version_is_told_apart(tmp_path: Path) -> None:
    packages = {"flowblend_cli": SPRITES.parents[2] / "cli", "flowblend_plugin": SPRITES.parents[2]}
    for name, folder in packages.items():
        shutil.copytree(folder / name, tmp_path / name)

    def digest(*folders: Path) -> str:
        code = "from flowblend_cli.utils.code import code_sha256; print(code_sha256())"
        paths = os.pathsep.join(map(str, folders))
        around = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=around,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    own = digest(*packages.values())
    assert digest(tmp_path) == own
    shutil.copytree(SPRITES.parents[1], tmp_path / "flowblend_cli/recipes")  # as installed
    assert digest(tmp_path) == own
    with (tmp_path / "flowblend_plugin/numerics.py").open("a") as file:
        file.write("# other\n")
    assert digest(tmp_path) != own
