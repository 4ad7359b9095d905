"""The house rules a machine can check."""

import ast
import filecmp
import itertools
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("memserve_jax", "pallas_kernels", "scheduler")
SOURCES = [
    path
    for folder in (*PACKAGES, "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "_pb2" not in path.name
]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "base", "manager", "common", "misc", "v2"}
JAX_FREE_FOLDERS = (
    *(f"memserve_jax/{name}" for name in ("core", "proto", "telemetry", "client")),
    "scheduler",
)
JAX_FREE_COMMANDS = ("generate", "chat", "status", "drain", "scheduler", "role", "route")
# Spelt in parts, so that this file does not name them either.
FOREIGN = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("download", "pytorch", "org"),
        ("crates", "io"),
    )
] + ["/".join(("", "work", folder)) for folder in ("main", "shared", ".library")]


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def floors() -> dict[str, list[str]]:
    """Returns BUILD's table: folder -> the floors it may import directly."""
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return ast.literal_eval(node.value)
    raise AssertionError("BUILD has no FLOORS")


def below(folder: str, table: dict[str, list[str]]) -> set[str]:
    """Returns every floor that `folder` may import, directly or through another."""
    found = set(table[folder])
    for floor in table[folder]:
        found |= below(floor, table)
    return found


def layers() -> list[set[str]]:
    """Returns the layers of the import contract as folders, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (entry for entry in contracts if entry["type"] == "layers")
    return [
        {name.strip().replace(".", "/") for name in layer.split("|")}
        for layer in contract["layers"]
    ]


def owner(module: str, table: dict[str, list[str]]) -> str | None:
    """Returns the floor that a module belongs to, None for other people's."""
    folder = module.replace(".", "/")
    return next((floor for floor in table if f"{folder}/".startswith(f"{floor}/")), None)


def imported(path: pathlib.Path) -> set[str]:
    """Returns the modules a file imports; `from a import b` counts as a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_files_are_named_after_what_they_hold():
    for path in SOURCES:
        if path.is_relative_to(ROOT / "tests"):
            continue
        words = set(path.stem.split("_")) | set(path.relative_to(ROOT).parts[:-1])
        assert not words & VAGUE_NAMES, relative(path)


def test_every_op_has_a_reference_and_a_test():
    ops = [init.parent for init in (ROOT / "pallas_kernels").glob("*/__init__.py")]
    assert ops
    for op in ops:
        for file in ("reference.py", "op.py"):
            assert (op / file).exists(), f"{op.name} has no {file}"
        assert (ROOT / "tests" / "kernels" / f"test_{op.name}.py").exists(), op.name


def test_every_module_with_logic_has_a_mirror_test():
    missing = []
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        if package in ("pallas_kernels", "tests") or path.name == "__init__.py":
            continue
        has_logic = any(
            isinstance(node, ast.If | ast.For | ast.While | ast.Match)
            for node in ast.walk(ast.parse(path.read_text()))
        )
        mirror = ROOT / "tests/unit" / path.relative_to(ROOT).with_name(f"test_{path.name}")
        if has_logic and not mirror.exists():
            missing.append(relative(mirror))
    assert not missing


def test_build_names_every_folder_of_the_tree_and_the_contract():
    in_tree = {relative(init.parent) for init in ROOT.glob("memserve_jax/*/__init__.py")} | {
        "pallas_kernels",
        "scheduler",
    }
    assert set(floors()) == in_tree
    assert set().union(*layers()) == in_tree


def test_build_goes_down_the_layers_of_the_contract():
    height = {folder: -index for index, layer in enumerate(layers()) for folder in layer}
    for folder, allowed in floors().items():
        for floor in allowed:
            assert height[floor] < height[folder], f"{folder} -> {floor}"


@pytest.mark.parametrize("folder", floors())
def test_the_tree_imports_what_build_allows(folder):
    table = floors()
    allowed = below(folder, table) | {folder, None}
    for path in (ROOT / folder).rglob("*.py"):
        for module in imported(path):
            assert owner(module, table) in allowed, f"{relative(path)} imports {module}"


def test_every_kind_of_test_is_a_build_target():
    suites = {path.name for path in (ROOT / "tests").iterdir() if any(path.rglob("test_*.py"))}
    text = (ROOT / "BUILD").read_text()
    for suite in suites - {"oracle"}:
        assert f'"{suite}"' in text, suite


def test_the_control_plane_and_client_commands_never_load_jax():
    modules = [f"memserve_jax.cli.{name}" for name in JAX_FREE_COMMANDS]
    for folder in JAX_FREE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            modules.append(relative(path).removesuffix(".py").replace("/", "."))
    program = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module.removesuffix('.__init__'))\n"
        "    if {'jax', 'flax'} & set(sys.modules): sys.exit(module + ' loads jax')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_nothing_that_serves_reads_pickles():
    """Whoever can send one runs code here. The benches talk so with children of their own."""
    readers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    readers |= {"multiprocessing", "multiprocessing.connection"}
    for path in SOURCES:
        folder = relative(path)
        if folder.startswith(("tests/", "memserve_jax/bench/")):
            continue
        assert not imported(path) & readers, folder
        assert "allow_pickle" not in path.read_text(), folder


def test_stubs_are_what_the_proto_gives(tmp_path):
    python = ROOT / ".venv-protos" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-protos: make protos makes it")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    source = "memserve_jax/proto/memserve.proto"
    subprocess.run(
        [python, "-m", "grpc_tools.protoc", "-I.", *outputs, source], cwd=ROOT, check=True
    )
    for path in (tmp_path / "memserve_jax" / "proto").iterdir():
        assert filecmp.cmp(path, ROOT / "memserve_jax" / "proto" / path.name, shallow=False), path


def test_no_file_names_a_registry_or_a_place():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name, word in itertools.product(filter(None, listed.stdout.split("\0")), FOREIGN):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1_000_000:
            assert word.encode() not in path.read_bytes(), f"{name} names {word}"
