"""Devices: what a list of them means, and the variables that hold a process to one."""

from __future__ import annotations

import os

import pytest

from flowblend_cli.utils.devices import parse_devices


def names(text: str) -> list[str]:
    return [device.name for device in parse_devices(text)]


def test_a_list_names_one_worker_a_device_or_several() -> None:
    assert names("all") == []
    assert names("cuda:0,cuda:2") == ["cuda:0", "cuda:2"]
    assert names(" cuda , cuda:1 ") == ["cuda:0", "cuda:1"]
    assert names("cpu*2") == ["cpu/1", "cpu/2"]
    assert names("cpu") == ["cpu"]
    assert names("cuda:1*2,xpu:0") == ["cuda:1/1", "cuda:1/2", "xpu:0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no device"),
        ("gpu:0", "'gpu:0' is no device: write all, cuda:0,cuda:1, or cpu*2"),
        ("cuda:0,,cuda:1", "'' is no device"),
        ("cuda:-1", "'cuda:-1' is no device"),
        ("cuda:0*0", "'cuda:0*0' is no worker at all"),
        ("cpu:1", "there is one cpu alone"),
        ("cuda:0,cuda", "cuda:0 stands there twice: write cuda:0*2 to share it"),
        ("all,cpu", "'all' is no device"),
        ("gpu, tpu", "'gpu' is no device: write all, cuda:0,cuda:1, or cpu*2; 'tpu' is"),
    ],
)
def test_what_is_no_list_is_refused_with_all_its_faults(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as raised:
        parse_devices(text)
    assert words in str(raised.value)


def test_a_process_sees_its_own_gpu_alone_among_those_that_this_one_may_use() -> None:
    one, two = parse_devices("cuda:0,cuda:2")
    assert one.environment({}) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert two.environment({}) == {"CUDA_VISIBLE_DEVICES": "2"}
    held = {"CUDA_VISIBLE_DEVICES": "4, GPU-8932f937,MIG-7"}
    assert one.environment(held) == {"CUDA_VISIBLE_DEVICES": "4"}
    assert two.environment(held) == {"CUDA_VISIBLE_DEVICES": "MIG-7"}


def test_processes_on_the_cpu_see_no_gpu_and_share_its_threads() -> None:
    devices = parse_devices("cpu*3")
    assert {device.share for device in devices} == {3}
    assert devices[0].environment({"OMP_NUM_THREADS": "8"}) == {
        "CUDA_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    assert devices[0].threads({"OMP_NUM_THREADS": "2"}) == 1
    cores = len(os.sched_getaffinity(0))
    assert parse_devices("cpu")[0].threads({}) == cores
