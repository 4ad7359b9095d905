"""Tiles fit the shape and the device, and what was measured wins over the rule of thumb."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tiles, tuned_tiles
from pallas_kernels.dispatch import KERNELS
from pallas_kernels.tiles import CopyTile, DecodeTile, PrefillTile, Shape

LLAMA = Shape("bfloat16", 64, 8, 4, 128, 16, 4096)
SHAPES = [
    dataclasses.replace(LLAMA, dtype=dtype, head_dim=head_dim, rows=rows, group=group)
    for dtype in ("bfloat16", "float32", "int8")
    for head_dim in (64, 96, 128, 256)
    for rows in (1, 256)
    for group in (1, 7, 64)
]


@pytest.mark.parametrize("op", tiles.TILES)
def test_the_rule_of_thumb_fits_every_shape_and_comes_first(op):
    for shape in SHAPES:
        tile = tiles.tiles_for(op, "a device nobody measured", shape)
        assert isinstance(tile, tiles.TILES[op])
        candidates = tiles.tile_candidates(op, shape)
        assert candidates[0] == tile
        assert len(set(candidates)) == len(candidates) > 4
        for candidate in candidates:
            assert tiles.shared_bytes(candidate, shape) <= tiles.SHARED_BYTES
            if isinstance(candidate, PrefillTile):
                assert candidate.queries >= shape.group


def test_every_op_has_tiles():
    assert set(tiles.TILES) == set(KERNELS)


def test_small_batches_are_split_and_large_ones_are_not():
    few = dataclasses.replace(LLAMA, rows=1, context_tokens=32768)
    many = dataclasses.replace(LLAMA, rows=256)
    assert tiles.tiles_for("paged_attention", "x", few).splits == 64
    assert tiles.tiles_for("paged_attention", "x", many).splits == 1
    short = dataclasses.replace(few, context_tokens=128)
    assert tiles.tiles_for("paged_attention", "x", short).splits == 1


@pytest.mark.parametrize(
    ("tile", "values", "message"),
    [
        (DecodeTile, (48, 1, 4, 3), "DecodeTile.turn_tokens: 48; it must be a power of two"),
        (DecodeTile, (8, 1, 4, 3), "DecodeTile.turn_tokens: 8; .* from 16 on"),
        (PrefillTile, (64, 64, 4, 0), "PrefillTile.num_stages: 0; it must be at least 1"),
        (CopyTile, (3, 4), "CopyTile.rows: 3"),
    ],
)
def test_a_tile_that_cannot_be_names_its_field(tile, values, message):
    with pytest.raises(ValueError, match=message):
        tile(*values)


def test_a_shape_is_known_by_powers_of_two():
    pages, q = jnp.zeros((4, 8, 16, 128), jnp.bfloat16), jnp.zeros((50, 32, 128), jnp.bfloat16)
    table = jnp.zeros((50, 200), jnp.int32)
    key = "bfloat16 rows64 K8 G4 H128 S16 context4096"
    assert tiles.attention_shape(q, pages, table, None).key == key
    assert tiles.attention_shape(q, pages, table, 4000).context_tokens == 3200
    assert tiles.copy_shape(pages, 3).key == "bfloat16 rows4 K8 G1 H128 S16 context0"


def test_what_was_measured_is_taken(tmp_path, monkeypatch):
    tile = DecodeTile(turn_tokens=128, splits=2, num_warps=8, num_stages=7)
    found = tuned_tiles.measured_now("paged_attention", LLAMA.key, dataclasses.asdict(tile), 12.5)
    assert found.jax == jax.__version__
    path = tuned_tiles.write(tmp_path, "NVIDIA X-1", [found])
    assert path.name == "nvidia_x_1.json"
    monkeypatch.setattr(tuned_tiles, "FOLDER", tmp_path)
    assert tiles.tiles_for("paged_attention", "NVIDIA X-1", LLAMA) == tile
    assert tiles.tiles_for("paged_attention", "NVIDIA X-2", LLAMA) != tile
    tuned_tiles.read.cache_clear()


def test_writing_keeps_other_shapes_and_replaces_equal_ones(tmp_path):
    tile = {"rows": 32, "num_warps": 4}
    first = [tuned_tiles.measured_now("kv_gather", shape, tile, 3.0) for shape in ("a", "b")]
    tuned_tiles.write(tmp_path, "GPU", first)
    path = tuned_tiles.write(tmp_path, "GPU", [dataclasses.replace(first[0], us=2.0)])
    entries = json.loads(path.read_text())["entries"]
    assert [(entry["shape"], entry["us"]) for entry in entries] == [("a", 2.0), ("b", 3.0)]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "gpu.json").write_text('{"entries": [{"op": "kv_gather"}]}')
    with pytest.raises(ValueError, match=r"tuned/gpu.json: .*missing"):
        tuned_tiles.write(tmp_path, "GPU", [])


def test_every_file_that_is_here_can_be_read():
    for path in tuned_tiles.FOLDER.glob("*.json"):
        kind = json.loads(path.read_text())["device_kind"]
        assert tuned_tiles.file_of(kind) == path.name
        for (op, _), entry in tuned_tiles.read(kind).items():
            tiles.TILES[op](**entry.tile)
