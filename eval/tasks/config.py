"""A task's YAML file, in lmms-eval's form: what it includes, the functions that it names, and what may stand in it."""

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml's, ten times as fast, where PyYAML was built with it
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from vtc.eval.cli.errors import InputError

#: The tasks that come along.
PACKAGED = Path(__file__).parent / "packaged"

#: What is read, and of which type; beside it keys that mean nothing to an evaluation.
KEYS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "include": (str, list),
    "dataset_path": str,
    "dataset_name": (str, type(None)),
    "dataset_kwargs": dict,
    "test_split": str,
    "validation_split": str,
    "process_docs": Callable,  # type: ignore[dict-item]
    "doc_to_visual": Callable,  # type: ignore[dict-item]
    "doc_to_text": (str, Callable),  # type: ignore[dict-item]
    "doc_to_target": (str, int, Callable),  # type: ignore[dict-item]
    "process_results": Callable,  # type: ignore[dict-item]
    "metric_list": list,
    "generation_kwargs": dict,
    "output_type": str,
    "lmms_eval_specific_kwargs": dict,
    "cluster_key": str,
    "score_key": str,
    "metadata": (dict, list),
}
#: Of lmms-eval's other modes, or for people.
PASSED_OVER = {
    "training_split", "fewshot_split", "fewshot_config", "num_fewshot", "description", "task_alias", "tag", "repeats",
    "full_docs", "group_alias", "model_specific_generation_kwargs", "model_specific_target_kwargs", "reasoning_tags",
    "process_results_use_image", "weight_by_size", "should_decontaminate", "doc_to_decontamination_query",
    "target_delimiter", "fewshot_delimiter",
}  # fmt: skip


@dataclass(frozen=True)
class TaskConfig:
    """A task as its file, and what that includes, describe it.

    Attributes:
        file: the YAML file.
        values: by key.
        files: all files that were read, YAML and Python.
    """

    file: Path
    values: dict[str, Any]
    files: tuple[Path, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the task."""
        return self.values["task"]

    @property
    def digest(self) -> str:
        """SHA-256 of all files."""
        made = hashlib.sha256()
        for file in self.files:
            made.update(file.name.encode() + b"\0" + file.read_bytes())
        return made.hexdigest()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return self.values.get(key, default)


def read_config(file: Path) -> TaskConfig:
    """Read a task.

    Raises:
        InputError: it is no YAML, includes itself, names a function that is not there, or has a key or a value that is
            not understood; names the file, the key and the way out.
    """
    files: list[Path] = []
    values = _read(file, (), files)
    _check(file, values)
    return TaskConfig(file, values, tuple(dict.fromkeys(files)))


def names_in(file: Path) -> tuple[str | None, list[str]]:
    """The name that a YAML file gives, and, where it is a group, its tasks; (None, []) where it gives none.

    Nothing that it names is imported.
    """
    values = _load(file, _Names)
    if not isinstance(values, dict):
        return None, []
    if "group" in values and isinstance(values.get("task"), list):
        return str(values["group"]), [str(each) for each in values["task"]]
    name = values.get("task")
    return (name, []) if isinstance(name, str) else (None, [])


class _Names(SafeLoader):
    """Reads functions as nothing."""


_Names.add_constructor("!function", lambda loader, node: None)


def _load(file: Path, loader: type[SafeLoader]) -> Any:
    try:
        with file.open(encoding="utf-8") as stream:
            return yaml.load(stream, loader)  # a safe loader in both cases
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task file {str(file)!r} can't be read ({error}); check the path") from None
    except yaml.YAMLError as error:
        raise InputError(f"task file {str(file)!r} is no YAML ({' '.join(str(error).split())}); mend it") from None


def _read(file: Path, above: tuple[Path, ...], files: list[Path]) -> dict[str, Any]:
    """The values of a file over those of what it includes."""
    if file.resolve() in above:
        raise InputError(f"task file {str(file)!r} includes itself; take one `include` out")

    class Loader(SafeLoader):
        """Imports the functions that are named, from beside the file."""

    def function(loader: SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
        return _function(file, str(loader.construct_scalar(node)), files)

    Loader.add_constructor("!function", function)
    values = _load(file, Loader)
    if not isinstance(values, dict):
        raise InputError(
            f"task file {str(file)!r} holds a {type(values).__name__}, not keys and values; see `vtc tasks`"
        )
    files.append(file)
    included = values.pop("include", [])
    made: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        made |= _read(file.parent / other, (*above, file.resolve()), files)
    return made | values


def _function(file: Path, name: str, files: list[Path]) -> Callable[..., Any]:
    """The function `module.function` of the Python file beside a YAML file."""
    module, _, attribute = name.rpartition(".")
    source = file.parent / f"{module.replace('.', '/')}.py"
    if not source.is_file():
        raise InputError(
            f"task file {str(file)!r} names !function {name}, but {str(source)!r} does not exist; write it"
        )
    files.append(source)
    try:
        found = getattr(_module(source), attribute, None)
    except Exception as error:  # whatever a newcomer's module raises when it is imported
        raise InputError(
            f"task file {str(file)!r}: {str(source)!r} can't be imported ({type(error).__name__}: {error}); mend it"
        ) from error
    if not callable(found):
        raise InputError(f"task file {str(file)!r} names !function {name}, but {source.name} has no {attribute!r}")
    return found


def _module(source: Path) -> ModuleType:
    source = source.resolve()
    if source.is_relative_to(PACKAGED.resolve()):
        inside = source.relative_to(PACKAGED.resolve()).with_suffix("")
        return importlib.import_module(".".join(("vtc.eval.tasks.packaged", *inside.parts)))
    name = f"vtc_task_{hashlib.sha256(str(source).encode()).hexdigest()[:12]}_{source.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, source)
        if spec is None or spec.loader is None:
            raise ImportError(f"{source} is no Python module")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(source.parent))  # it may import what lies beside it
        try:
            sys.modules[name] = module
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path.remove(str(source.parent))
    return sys.modules[name]


def _check(file: Path, values: dict[str, Any]) -> None:
    where = f"task file {str(file)!r}"
    kind = values.get("output_type", "generate_until")
    if kind != "generate_until":
        raise InputError(
            f"{where}: output_type {kind!r} is not for vtc eval, which scores written answers (generate_until)"
        )
    for key, value in values.items():
        if key in PASSED_OVER:
            continue
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"what is understood: {', '.join(KEYS)}"
            raise InputError(f"{where} has a key {key!r} that is not understood; {hint}")
        if not isinstance(value, KEYS[key]):
            raise InputError(
                f"{where}: {key} is {value!r}, a {type(value).__name__}; see the packaged tasks for its form"
            )
    if not re.fullmatch(r"[\w.-]*\w", str(values.get("task", "x"))):  # a folder gets this name
        raise InputError(
            f"{where}: task {values['task']!r} has other signs than letters, digits, _, - and .; rename it"
        )
    for key in ("task", "dataset_path", "doc_to_visual", "doc_to_text", "doc_to_target", "metric_list"):
        if key not in values:
            raise InputError(f"{where} has no {key!r}; add it (the packaged tasks show how)")
    if "test_split" not in values and "validation_split" not in values:
        raise InputError(f"{where} has no 'test_split'; name the split whose questions are asked")
