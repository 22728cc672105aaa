"""Lists the circles of imports among the project's modules: `python tests/circles.py`. Imports for types count.

Reads the files and the package table of pyproject.toml, and nothing else: no module is imported.
"""

import ast
import graphlib
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules() -> dict[str, Path]:
    """Every module of every package -> its file."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders: dict[str, str] = setuptools["package-dir"]
    found = {}
    for package in setuptools["packages"]:
        home = max((name for name in folders if f"{package}.".startswith(f"{name}.")), key=len)
        folder = ROOT / folders[home] / package.removeprefix(home).strip(".").replace(".", "/")
        for file in folder.glob("*.py"):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere, in functions and for types too."""
    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = name if file.stem == "__init__" else name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                inside = (f"{source}.{alias.name}" for alias in node.names)
                wanted |= {full if full in known else source for full in inside}
        graph[name] = {other for other in wanted if other in known and other != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of a graph, until none is left once one arrow of each is taken out."""
    graph, found = {name: set(others) for name, others in graph.items()}, []
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
            return found
        except graphlib.CycleError as error:
            circle = error.args[1]
            found.append(circle)
            graph[circle[1]].discard(circle[0])


if __name__ == "__main__":
    known = modules()
    found = circles(imports(known))
    for circle in found:
        print(" -> ".join(circle))
    print(f"{len(found)} circles among {len(known)} modules")
