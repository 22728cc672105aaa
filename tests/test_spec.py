"""The spec grammar and the registry behind it."""

from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from vtc import DivPrune, FastV, HiPrune, KCenter, NoCompression, Random, Selector, TransPrune
from vtc.method.base import Method
from vtc.method.registry import _registered, method_class, shipped
from vtc.spec import parse, to_string

SPECS: list[tuple[str, list[Method]]] = [
    ("divprune", [DivPrune()]),
    ("none", [NoCompression()]),
    ("divprune:keep=0.25", [DivPrune(keep=0.25)]),
    ("divprune:keep=64", [DivPrune(keep=64)]),
    ("divprune:keep=1e-1", [DivPrune(keep=0.1)]),
    ("hiprune:alpha=0.2,object_layer=3,compat=True", [HiPrune(alpha=0.2, object_layer=3, compat=True)]),
    ("hiprune:object_layer=None,deep_layer=-2", [HiPrune(deep_layer=-2)]),
    ("kcenter:rule=max-sum,pivot=mean", [KCenter(rule="max-sum", pivot="mean")]),
    ("kcenter:rule='max-sum'", [KCenter(rule="max-sum")]),
    ("divprune:keep=0.25+fastv:layer=2,keep=0.5", [DivPrune(keep=0.25), FastV(layer=2, keep=0.5)]),
    ("transprune:layers=(7,9,12),keeps=(0.875,0.5,64)", [TransPrune(layers=(7, 9, 12), keeps=(0.875, 0.5, 64))]),
    ("transprune:layers=(7,9),keeps=[0.5,0.25],direction=paper",
     [TransPrune(layers=(7, 9), keeps=(0.5, 0.25), direction="paper")]),
    (" divprune : keep = 0.25 , + fastv".replace(" ,", ""), [DivPrune(keep=0.25), FastV()]),
    ("random:seed=-1+fastv+transprune:keep=1e+0", [Random(seed=-1), FastV(), TransPrune(keep=1.0)]),
]  # fmt: skip

SHIPPED = shipped()


@pytest.mark.parametrize(("spec", "methods"), SPECS, ids=[spec for spec, _ in SPECS])
def test_a_spec_gives_its_methods_and_comes_back(spec: str, methods: list[Method]) -> None:
    parsed = parse(spec)
    assert parsed == methods
    assert parse(to_string(parsed)) == methods


def test_fields_at_their_default_are_left_out() -> None:
    assert to_string([DivPrune(), FastV(layer=3), NoCompression()]) == "divprune+fastv:layer=3+none"


@settings(max_examples=30, deadline=None)
@given(
    keep=st.one_of(st.floats(0.001, 1.0), st.integers(1, 5000)),
    alpha=st.floats(0, 1),
    layer=st.one_of(st.none(), st.integers(-32, 31)),
    prune_keep=st.floats(0.001, 1.0),
    layers=st.sets(st.integers(1, 40), min_size=3, max_size=3),
)
def test_any_methods_survive_the_round_trip(
    keep: Any, alpha: float, layer: int | None, prune_keep: float, layers: set[int]
) -> None:
    methods = [
        HiPrune(keep=keep, alpha=alpha, object_layer=layer),
        FastV(keep=prune_keep),
        TransPrune(keep=keep, layers=tuple(sorted(layers))),
    ]
    assert parse(to_string(methods)) == methods


def test_methods_and_lists_of_specs_are_specs() -> None:
    assert parse(DivPrune(keep=7)) == [DivPrune(keep=7)]
    assert parse([DivPrune(), "fastv:layer=3", ["transprune"]]) == [DivPrune(), FastV(layer=3), TransPrune()]
    assert parse("divprune", keep=0.5) == [DivPrune(keep=0.5)]
    assert parse("fastv:layer=4", keep=0.25) == [FastV(layer=4, keep=0.25)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("divprun", ["'divprun'", "did you mean 'divprune'"]),
        ("fastv2:keep=0.5", ["'fastv2'", "did you mean 'fastv'"]),
        ("DivPrune", ["'DivPrune'", "divprune"]),
        ("zzzz", ["'zzzz'", "known: ", "divprune", "transprune"]),
        ("", ["''", "known: "]),
        ("+divprune", ["''"]),
        ("divprune+", ["'divprune+'", "did you mean 'divprune'"]),
        ("divprune:", ["'divprune:'", "key=value"]),
        ("divprune:keep", ["'keep'", "key=value"]),
        ("divprune:keep=", ["'keep='", "key=value"]),
        ("divprune:=3", ["'=3'", "key=value"]),
        ("divprune:keep=0.1,,", ["key=value"]),
        ("divprune:keeps=0.5", ["divprune has no field 'keeps'", "did you mean 'keep'"]),
        ("divprune:zzz=0.5", ["divprune has no field 'zzz'", "it has: keep"]),
        ("none:keep=0.5", ["none has no field 'keep'", "no fields"]),
        ("divprune:keep=0.5,keep=0.25", ["'keep' is given twice"]),
        ("divprune:keep=1.5", ["keep=1.5", "(0, 1]"]),
        ("kcenter:rule=min-max", ["rule='min-max'", "'max-sum'"]),
        ([], ["[]", "'none'"]),
    ],
    ids=repr,
)
def test_a_bad_spec_is_a_clear_error(spec: Any, said: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        parse(spec)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_a_field_given_twice_or_to_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="'keep' is given twice"):
        parse("divprune:keep=0.5", keep=0.25)
    with pytest.raises(ValueError, match="ambiguous"):
        parse("divprune+fastv", keep=0.25)
    with pytest.raises(ValueError, match="ambiguous"):
        parse(DivPrune(), keep=0.25)
    with pytest.raises(ValueError, match="did you mean 'keep'"):
        parse("divprune", kep=0.25)


@pytest.mark.parametrize("spec", [None, 3, 0.25, DivPrune, object()], ids=["None", "int", "float", "class", "object"])
def test_another_type_is_a_type_error(spec: Any) -> None:
    with pytest.raises(TypeError, match="spec="):
        parse(spec)


def test_methods_are_listed_by_kind() -> None:
    """A new method needs no line here: these are some that there are, and each name has one kind."""
    some = {
        "prune": (vtc.Prune, {"atp_tf", "fastv", "holitom_inner", "lazyllm", "todre_stage2", "token_skip", "utrc"}),
        "selector": (vtc.Selector, {"divprune", "evs", "frame_stride", "holitom", "none", "todre", "visionzip"}),
        "reducer": (vtc.Reducer, {"diffrate", "flowcut", "token_transforming", "tome", "zero_tprune"}),
    }
    for kind, (base, names) in some.items():
        listed = vtc.list_methods(kind)
        assert names <= set(listed) and listed == sorted(listed)
        assert all(issubclass(method_class(name), base) for name in listed)
    together = [name for kind in some for name in vtc.list_methods(kind)]
    assert sorted(together) == vtc.list_methods() and len(set(together)) == len(together)
    assert [name for name in vtc.list_methods() if name in SHIPPED] == SHIPPED
    with pytest.raises(ValueError, match="kind='outer'"):
        vtc.list_methods("outer")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_is_its_registered_dataclass_with_documented_fields(name: str) -> None:
    cls = method_class(name)
    assert cls.name == name
    assert cls() == parse(name)[0]
    assert cls.__doc__
    for field in fields(cls):  # what all selectors have is documented once, at their base
        home = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", ()))
        said = (Selector if home is Selector else cls) if home is not cls else cls
        assert f"{field.name}: " in (said.__doc__ or ""), f"{field.name} is not documented"


def test_a_method_of_one_s_own_is_a_spec_too() -> None:
    @vtc.register("mine")
    @dataclass
    class Mine(Selector):
        keep: float = 0.5
        sharpness: float = 1.0

    try:
        assert parse("mine:sharpness=2.0") == [Mine(sharpness=2.0)]
        with pytest.raises(ValueError, match="'mine' is taken by"):
            vtc.register("mine")(type("Other", (Selector,), {}))
    finally:
        del _registered["mine"]
