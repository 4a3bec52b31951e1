"""The header of a LoRA file, read without torch: damage, spellings, and what is no plain LoRA."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowblend_plugin import AdapterError
from flowblend_plugin.denoisers.adapter_header import AdapterHeader, read_adapter_header

Q = "blocks.0.attn1.to_q"
WHOLE = {f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (4, 2)}


def file_bytes(shapes: dict[str, tuple[int, ...]], values: bytes = b"\1\0\0\0") -> bytes:
    """A safetensors file by hand; every number of it is ``values``."""
    entries, data = {}, b""
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        offsets = [len(data), len(data) + 4 * count]
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        data += values * count
    header = json.dumps(entries | {"__metadata__": {"by": "hand"}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "style.safetensors"


def header_of(
    path: Path, shapes: dict[str, tuple[int, ...]], values: bytes = b"\1\0\0\0"
) -> AdapterHeader:
    path.write_bytes(file_bytes(shapes, values))
    return read_adapter_header(path)


def test_a_whole_file_has_no_problems(path: Path) -> None:
    header = header_of(path, WHOLE)

    assert header.problems() == []
    assert header.shapes == WHOLE
    assert header.metadata == {"by": "hand"}
    assert header.text_keys == ()


def test_a_file_that_ends_anywhere_else_isnt_whole(path: Path) -> None:
    data = file_bytes(WHOLE)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(AdapterError, match=r"isn't whole|no safetensors file"):
            read_adapter_header(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(AdapterError, match="isn't whole"):
        read_adapter_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    start=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=4)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["a.lora_A.weight", "shape", "data_offsets", "__metadata__"]),
                    inner,
                    max_size=3,
                ),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_whatever_a_header_holds_is_read_or_refused(path: Path, start: bytes) -> None:
    path.write_bytes(len(start).to_bytes(8, "little") + start)
    with suppress(AdapterError):
        assert isinstance(read_adapter_header(path).problems(), list)


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", "diffusers"),
        ("unet.down_blocks.0.attn1.processor.to_q_lora.down.weight", "diffusers"),
        ("diffusion_model.blocks.0.self_attn.q.lora_down.weight", "ComfyUI"),
        ("base_model.model.blocks.0.attn1.to_q.lora_A.weight", "peft"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "musubi-tuner"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "kohya"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "XLabs"),
        ("blocks.0.attn1.to_q.lora_A.weight", "plain"),
    ],
)
def test_spellings_have_names_and_their_halves_are_found(
    path: Path, name: str, spelling: str
) -> None:
    header = header_of(path, {name: (2, 4)})

    assert header.spelling == spelling
    (problem,) = header.problems()
    assert problem.startswith(f"1 weight ({name}) is one half")


@pytest.mark.parametrize("kind", ["diff", "diff_b", "w_norm", "b_norm"])
def test_a_difference_of_zeros_changes_nothing(path: Path, kind: str) -> None:
    shapes = WHOLE | {f"blocks.0.norm1.{kind}": (4,)}

    assert header_of(path, shapes, b"\0\0\0\0").problems() == []
    (problem,) = header_of(path, shapes).problems()
    assert f"1 weight (blocks.0.norm1.{kind}) is to be added" in problem


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.a.lora_A.weight",
        "text_encoder_2.a.lora_A.weight",
        "lora_te_a.lora_down.weight",
        "lora_te1_a.lora_down.weight",
        "lora_te3_a.alpha",
        "text_encoders.clip_l.transformer.a.lora_down.weight",
        "connectors.a.lora_A.weight",
        "diffusion_model.llm_adapter.a.lora_A.weight",
    ],
)
def test_a_text_encoders_weights_are_told_apart(path: Path, name: str) -> None:
    header = header_of(path, WHOLE | {name: (2, 4)})

    assert header.text_keys == (name,)
    assert header.problems() == []
    assert "text encoder" in header_of(path, {name: (2, 4)}).problems()[0]


def test_every_weight_of_every_other_kind_is_counted(path: Path) -> None:
    others: dict[str, tuple[int, ...]] = {
        f"{Q}.{end}": (4, 4)
        for end in ("hada_w1_a", "hada_w1_b", "lokr_w1", "dora_scale", "weight", "lora_mid.weight")
    }
    problems = header_of(path, WHOLE | others).problems()

    assert [line.partition(" is ")[0].partition(" are ")[0] for line in problems] == [
        f"2 weights ({Q}.hada_w1_a, {Q}.hada_w1_b)",
        f"1 weight ({Q}.lokr_w1)",
        f"1 weight ({Q}.lora_mid.weight)",
        f"1 weight ({Q}.dora_scale)",
        f"1 weight ({Q}.weight)",
    ]


def test_what_belongs_to_no_pair_is_named(path: Path) -> None:
    lonely = {f"nobody{end}": (4,) for end in (".alpha", ".lora_B.bias", ".lora_magnitude_vector")}
    (problem,) = header_of(path, WHOLE | lonely).problems()

    assert problem.startswith("3 weights (nobody.lora_B.bias, nobody.alpha, nobody.lora_mag")
    own = {f"{Q}{end}": (4,) for end in (".alpha", ".lora_B.bias", ".lora_magnitude_vector")}
    assert header_of(path, WHOLE | own).problems() == []
