"""The best of each kind: how they are ranked, what the short table shows of them, and that `make run` takes them."""

import json
import re
import subprocess
from pathlib import Path
from statistics import fmean

import pytest

from vtc.eval.report import short
from vtc.eval.results.kinds import by_kind, kind_of, ranked
from vtc.method import registry
from vtc.method.kinds import split_kinds

ROOT = Path(__file__).parent.parent
KEEPS = (0.25, 0.0625)


def row(setting: str, right: float, tokens: float = 64.0, speedup: float = 1.5) -> dict:
    """One setting of a made-up run."""
    series = re.sub(r":?keep=[\d.]+,?", "", setting)
    keep = re.search(r"keep=([\d.]+)", setting) if "+" not in setting else None
    return {
        "setting": setting, "series": series, "keep": float(keep[1]) if keep else None, "equivalent_tokens": tokens,
        "overall": {"accuracy": right, "interval_95": [right / 2, 1.0]}, "visual_tokens": 256.0,
        "metrics": {"exact_match": {"value": right, "interval_95": [right / 2, 1.0]}},
        "prefill_speedup": {"median": speedup}, "prefill_speedup_ideal": 2.0,
    }  # fmt: skip


def run(*rows: dict) -> dict:
    """A made-up run."""
    config = {"model": "embedded", "benchmark": "embedded/test", "dtype": "float32", "shows": "image"}
    settings = [row("none", 0.95, 256.0, 1.0), *rows]
    return {"config": config, "questions": 80, "failed": [], "blind": {"overall": 0.23}, "settings": settings}


def test_every_shipped_method_has_the_kind_that_composing_takes_it_for():
    baselines = {name for name in registry.shipped() if kind_of(name) == "baseline"}
    assert baselines == {"none", "random", "stride", "frame_stride", "pool"}
    for name in set(registry.shipped()) - baselines:
        reducer, selector, prunes = split_kinds([registry.method_class(name)()])
        expected = "reducer" if reducer else "selector" if selector else "prune"
        assert kind_of(name) == kind_of(f"{name}:per=frame") == expected, name
        assert prunes or expected != "prune"
    assert kind_of("divprune+fastv:layer=3") == "composition"
    assert kind_of("of_a_package_that_is_not_imported") == "other"


def test_the_best_are_right_most_often_and_of_equals_those_with_fewer_tokens():
    rows = [
        *(row("fastv:keep=0.25", 0.90, 110), row("fastv:keep=0.0625", 0.80, 80)),
        *(row("atp:keep=0.25", 0.80, 60), row("atp:keep=0.0625", 0.90, 50)),  # as often right with less
        *(row("spatten:keep=0.25", 0.99, 60), row("spatten:keep=0.0625", 0.60, 50)),
        *(row("lazyllm:keep=0.25", 0.92, 90), row("lazyllm:keep=0.0625", 0.91, 90)),
    ]
    assert list(by_kind(rows)["prune"]) == ["lazyllm", "atp", "fastv", "spatten"]


def test_means_are_of_the_same_budgets():
    """One asked at a budget more is not better for it, and one that lacks a budget does not win by the easy one."""
    rows = [
        *(row("divprune:keep=0.25", 0.90), row("divprune:keep=0.0625", 0.80)),
        *(row("visionzip:keep=0.75", 1.0), row("visionzip:keep=0.25", 0.89), row("visionzip:keep=0.0625", 0.80)),
        *(row("hiprune:keep=0.25", 0.70), row("hiprune:keep=0.0625", 0.60)),
        row("kcenter:keep=0.25", 0.95),
    ]
    assert list(by_kind(rows)["selector"]) == ["divprune", "visionzip", "hiprune", "kcenter"]


def test_where_no_budget_is_shared_all_of_each_count():
    """At equal equivalent tokens every method has keeps of its own."""
    series = {
        "a": [row("a:keep=0.31", 0.7), row("a:keep=0.12", 0.5)],
        "b": [row("b:keep=0.30", 0.6), row("b:keep=0.11", 0.9)],
        "c": [row("c:keep=0.29", 0.8)],
    }
    assert ranked(series) == ["b", "a", "c"]


def test_the_short_table_shows_all_baselines_and_four_of_each_kind_in_a_hundred_columns():
    methods = ["random", "stride", "pool", "kcenter", "hiprune", "todre", "divprune", "tokencorr", "visionzip"]
    rows = [row(f"{name}:keep={keep}", 0.9 - n / 100) for n, name in enumerate(methods) for keep in KEEPS]
    long = "holitom:keep=0.25,retain_threshold=0.8125,merge_threshold=0.9+pyramiddrop:keep=0.125,layers=(2,4,6)"
    text = short.plain(run(*rows, row("tome:keep=0.25", 0.5, speedup=2.345), row(long, 0.71, 33.25)))
    lines = text.splitlines()
    assert max(map(len, set(lines) - {f"  {long}"})) <= 100
    shown = [line.split()[0] for line in lines if "keep=" in line]
    kept = ["random", "stride", "pool", "kcenter", "hiprune", "todre", "divprune"]
    assert shown == [f"{name}:keep={keep}" for name in kept for keep in KEEPS] + ["tome:keep=0.25", long]
    titles = ["baselines", "selectors, the best 4 of 6", "reducers", "compositions"]
    assert [line for line in lines if line in titles] == titles
    none, blank = (next(line for line in lines if line.startswith(start)) for start in ("none  ", "none, blank"))
    assert none.split() == ["none", "95.0", "47.5–100.0", "256.0", "1.00", "2.00"]
    assert blank.split() == ["none,", "blank", "picture", "23.0"]
    tome = next(line for line in lines if "tome:" in line)
    assert tome.split() == ["tome:keep=0.25", "50.0", "25.0–100.0", "64.0", "2.35", "2.00"]
    assert lines[lines.index(f"  {long}") + 1].split() == ["71.0", "35.5–100.0", "33.2", "1.50", "2.00"]


def test_a_task_that_is_scored_otherwise_shows_its_metric_too():
    scored = run(row("divprune:keep=0.25", 0.8))
    for each in scored["settings"]:
        each["metrics"] = {"mme_score": {"value": 1000 * each["overall"]["accuracy"], "interval_95": [0, 1]}}
    assert "mme_score" in short.plain(scored) and " 800 " in short.plain(scored)
    assert "exact_match" not in short.plain(run())


def made_by(target: str, *variables: str) -> list[str]:
    """The commands that `make` would run for a target, whatever the environment says."""
    done = subprocess.run(
        ["env", "-i", "PATH=/usr/bin:/bin:/usr/local/bin", "make", "-n", target, *variables],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.replace("\\\n", " ").splitlines() if "vtc " in line and "make" not in line]


def argument(command: str, name: str) -> str:
    """What follows an argument of a command."""
    found = re.search(rf"--{name} (\S+)", command)
    assert found, f"--{name} is not in {command}"
    return found[1]


def test_make_run_takes_the_best_of_each_kind_of_the_long_run():
    settings = json.loads((ROOT / "docs" / "methods" / "results.json").read_text(encoding="utf-8"))["settings"]
    measured: dict[str, dict[float, dict]] = {}
    for each in settings:
        measured.setdefault(each["setting"].partition(":")[0], {})[each["keep"]] = each
    expected = set()
    for kind in registry.KINDS:
        names = [name for name in registry.list_methods(kind) if set(KEEPS) <= measured.get(name, {}).keys()]
        found = []
        for name in names:
            if kind_of(name) != "baseline":
                at = [measured[name][keep] for keep in KEEPS]
                accuracy = fmean(each["overall"]["right"] / each["overall"]["asked"] for each in at)
                found.append((-round(accuracy, 9), sum(each["equivalent_tokens"] for each in at), name))
        expected |= {name for _, _, name in sorted(found)[:4]}
    for share in made_by("run")[:2]:
        names = argument(share, "methods").split(",")
        assert names[:4] == ["none", "random", "stride", "pool"]
        assert sorted(names[4:]) == sorted(expected), "the Makefile's BEST is not what results.json says"
        assert argument(share, "keep") == "0.25,0.0625"


def test_make_run_and_make_table_have_folders_of_their_own_and_take_variables():
    run, table = made_by("run"), made_by("table")
    assert [line.partition(".venv")[0] for line in run] == ["RANK=0 WORLD_SIZE=2 ", "RANK=1 WORLD_SIZE=2 ", ""]
    folders = [{argument(line, "output") for line in commands if " eval " in line} for commands in (run, table)]
    assert folders == [{"runs/embedded"}, {"runs/table", "runs/table-video"}]
    assert run[-1].endswith("vtc report runs/embedded --output runs/embedded/report.html")
    for target in ("run", "table"):
        changed = made_by(target, "LIMIT=7", "METHODS=divprune", "OUT=elsewhere")
        assert "--methods divprune " in changed[0] and "--limit 7 " in changed[0]
        assert "--output elsewhere" in changed[0]


@pytest.mark.parametrize("target", ["run", "table"])
def test_every_method_that_make_measures_is_there(target):
    for line in made_by(target):
        if " eval " in line:
            assert set(argument(line, "methods").split(",")) <= set(registry.shipped())
