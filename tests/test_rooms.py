"""The house: arrows of imports run one way, rooms hold few things, and transformers' names stand in one of them."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from circles import ROOT, circles, imports, modules

import vtc
from vtc.calls import attention, clip, composite, decoder, generate, outputs, prepare, roles, tower

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = [ROOT / name for name in ("vtc", "adapters", "cuda/kernels", "eval", "demo", "serve")]
#: Rooms in a folder: modules beside `__init__` and folders with code.
MOST = 16
#: Names of arguments, outputs and methods of transformers that are no role of `vtc.calls`, but stand there too.
MORE = {
    *("use_cache", "output_attentions", "return_dict", "num_logits_to_keep", "logits_to_keep", "prefill_chunk_size"),
    *("cu_seqlens", "cu_seq_lens_q", "rope_deltas", "token_id", "image_features", "video_features"),
    *("get_image_features", "get_video_features", "image_grid_thw", "video_grid_thw", "scaling", "is_causal"),
    *("softcap", "_attn_implementation_internal", "_attn_implementation", "pixel_values", "pixel_values_videos"),
}
#: Words that are everybody's: roles go by them, and so do other things.
PLAIN = {"cache", "labels", "images", "scaling", "softcap", "cu_seqlens", "token_id", "pixel_values", "image_features"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_no_module_imports_itself_in_a_circle():
    found = circles(imports(modules()))
    assert not found, "\n".join(" -> ".join(circle) for circle in found)


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert [sorted(set(circle)) for circle in circles(graph)] in (
        [["a", "b", "c"], ["d", "e"]],
        [["d", "e"], ["a", "b", "c"]],
    )


def test_every_folder_with_code_is_installed():
    known = {file.parent for file in modules().values()}
    with_code = {file.parent for folder in FOLDERS for file in folder.rglob("__init__.py")}
    packaged = ROOT / "eval" / "tasks" / "packaged"  # its folders come along as data
    assert {folder for folder in with_code if packaged not in folder.parents} <= known
    assert len(SETUPTOOLS["packages"]) == len(set(SETUPTOOLS["packages"]))


@pytest.mark.parametrize("top", FOLDERS, ids=lambda folder: folder.name)
def test_no_folder_has_many_rooms(top: Path):
    for folder in [top, *(file.parent for file in top.rglob("__init__.py"))]:
        rooms = {file for file in folder.glob("*.py") if file.stem not in ("__init__", "__main__")}
        rooms |= {inner for inner in folder.iterdir() if any(inner.glob("*.py"))}
        packaged = folder.name == "packaged"  # a folder for each benchmark
        assert packaged or len(rooms) <= MOST, f"{folder} has {len(rooms)} rooms"


def transformers_names() -> set[str]:
    """What `vtc.calls` knows arguments, outputs and methods by."""
    calls = [
        value for module in (composite, decoder, outputs, prepare, roles, tower) for value in vars(module).values()
    ]
    names = set(roles.names_of(*(value for value in calls if isinstance(value, type))))
    names |= {composite.PLACEHOLDERS, composite.MERGING, composite.PACKING, prepare.PREPARE}
    names |= {generate.PREFILL, generate.MAKING_CACHES, generate.MAKING_POSITIONS}
    names.add(generate.ENCODING_AHEAD)
    return (names | MORE) - PLAIN


def test_the_roles_are_known():
    wanted = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values", "input_ids", "hidden_states"}
    wanted |= {"last_hidden_state", "pooler_output", "position_embeddings", "cache_params", "mm_encoder_outputs"}
    assert wanted <= transformers_names()
    assert attention.IMPLEMENTATION in transformers_names() and clip.text_vectors is not None


def uses(file: Path, names: set[str]) -> Iterator[str]:
    """Where a file has one of the names: as a string, an attribute, or an argument of a call or a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value]
        elif isinstance(node, ast.Attribute):
            found = [node.attr]
        elif (isinstance(node, ast.keyword) and node.arg) or isinstance(node, ast.arg):
            found = [node.arg]
        for name in names.intersection(found):
            yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {name}"


def test_transformers_names_stand_in_one_room():
    names = transformers_names()
    room = ROOT / "vtc" / "calls"
    outside = [file for file in sources("vtc", "adapters") if not file.is_relative_to(room)]
    found = [use for file in outside for use in uses(file, names)]
    assert not found, "\n".join(found)
    assert any(True for file in sources("vtc/calls") for _ in uses(file, names))


def test_every_public_name_is_a_row_of_one_table():
    table = (ROOT / "vtc" / "__init__.pyi").read_text()
    assert all(f"import {name} as {name}\n" in table for name in vtc.__all__)
    for file in sources("vtc"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
                words = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert len({*words} & {*vtc.__all__}) < 3, f"{file}:{node.lineno} lists public names again"


def test_long_files_say_why():
    for folder in FOLDERS:
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if text.count("\n") > 300:
                assert "lines" in text[:800], f"{file} has more than 300 lines, and its docstring does not say why"
