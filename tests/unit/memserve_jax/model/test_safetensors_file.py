"""Tensors come out as they were written; what is broken is named in one line."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.safetensors_file import INDEX, SINGLE, TensorFiles

WEIGHTS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, ml_dtypes.bfloat16),
    "c": np.full((1, 2), 0.5, np.float16),
}


@pytest.fixture
def single(tmp_path) -> pathlib.Path:
    save_file(WEIGHTS, tmp_path / SINGLE, metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path) -> pathlib.Path:
    save_file({"a": WEIGHTS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": WEIGHTS["b"]}, tmp_path / "two.safetensors")
    file_of = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": file_of}))
    return tmp_path


def problem(directory: pathlib.Path, name: str = "a") -> str:
    with pytest.raises(CheckpointError) as caught:
        TensorFiles(str(directory)).tensor(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_are_what_was_written(single):
    files = TensorFiles(str(single))
    assert files.names == WEIGHTS.keys()
    for name, expected in WEIGHTS.items():
        assert files.tensor(name).dtype == expected.dtype
        np.testing.assert_array_equal(files.tensor(name), expected)


def test_tensors_are_views_that_cannot_be_written(single):
    with pytest.raises(ValueError, match="read-only"):
        TensorFiles(str(single)).tensor("a")[0] = 1


def test_an_index_names_files(sharded):
    files = TensorFiles(str(sharded))
    assert files.names == {"a", "b"}
    np.testing.assert_array_equal(files.tensor("b"), WEIGHTS["b"])


def test_no_files(tmp_path):
    assert problem(tmp_path).endswith(f"missing {SINGLE} or {INDEX}")


def test_a_missing_tensor(single, sharded):
    assert problem(single, "x").endswith("missing tensor x")


def test_a_missing_file_of_the_index(sharded):
    (sharded / "two.safetensors").unlink()
    assert "two.safetensors: missing, but named by the index" in problem(sharded, "b")


def test_a_file_without_what_the_index_says(sharded):
    save_file({"z": WEIGHTS["b"]}, sharded / "two.safetensors")
    assert problem(sharded, "b").endswith("two.safetensors: missing tensor b")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}'])
def test_a_corrupt_index(sharded, text):
    (sharded / INDEX).write_text(text)
    assert f"{INDEX}: not an index" in problem(sharded)


@pytest.mark.parametrize("kept", [0, 7, 40, -1, -9])
def test_a_truncated_file(single, kept):
    whole = (single / SINGLE).read_bytes()
    (single / SINGLE).write_bytes(whole[:kept])
    message = problem(single, "c") + problem(single, "a")
    assert SINGLE in message
    assert "truncated" in message or "cannot read" in message


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}',
    ],
)
def test_a_corrupt_header(single, header):
    (single / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert "corrupt" in problem(single)


def test_an_absurd_header_length(single):
    (single / SINGLE).write_bytes(b"\xff" * 64)
    assert "corrupt: a header of" in problem(single)


def test_a_dtype_that_is_not_supported(single):
    save_file({"a": np.arange(3)}, single / SINGLE)
    assert problem(single).endswith("a: dtype I64, allowed: F32, F16, BF16")
