"""Controls: one for each field of a method, and the spec that each change makes."""

import pytest

import vtc
from vtc.demo import controls
from vtc.eval.cli.errors import InputError
from vtc.method import registry

METHODS = [name for name in registry.shipped() if name != "none"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_control_for_each_field_and_none_else(name):
    methods = controls.parse(name, 400)
    found = controls.controls(methods)
    assert [control.name for control in found] == [field.name for field in vtc.method.fields.settable(methods[0])]
    for control in found:
        assert controls.changed(methods, control, control.value) == methods
        assert control.about, f"{name}.{control.name} is not described"
    assert controls.parse(controls.to_text(methods), 400) == methods


def test_a_control_changes_its_own_field_of_its_own_method():
    methods = controls.parse("divprune:keep=0.5+fastv:keep=0.25", 400)
    (_, _, _, _, layer, keep) = controls.controls(methods)
    assert (layer.stage, layer.name, keep.stage, keep.name) == (1, "layer", 1, "keep")
    assert controls.to_text(controls.changed(methods, layer, 3.0)) == "divprune:keep=0.5+fastv:layer=3,keep=0.25"
    assert controls.to_text(controls.changed(methods, keep, 1)) == "divprune:keep=0.5+fastv:keep=1.0"


def test_keep_changes_its_unit_and_stays_what_it_is_where_the_method_changes():
    methods = controls.parse("divprune:keep=0.5", 400)
    assert controls.units(methods[0]) == (controls.SHARE, controls.TOKENS)
    counted = controls.in_unit(methods, 0, controls.TOKENS)
    assert controls.to_text(counted) == "divprune:keep=64" and controls.unit(counted[0]) == controls.TOKENS
    assert controls.to_text(controls.with_first(counted, "hiprune")) == "hiprune:keep=64"
    assert controls.to_text(controls.with_second(counted, "fastv")) == "divprune:keep=64+fastv:keep=0.5"
    (adaptive,) = controls.parse("recoverable:keep=None", 400)
    assert controls.unit(adaptive) == controls.ADAPTIVE and controls.ADAPTIVE in controls.units(adaptive)
    assert controls.to_text(controls.with_first([adaptive], "divprune")) == "divprune:keep=0.098"


@pytest.mark.parametrize(
    "text, message",
    [
        ("divprun", "unknown method 'divprun'; did you mean 'divprune'"),
        ("divprune:keep=2.0", "keep=2.0"),
        ("divprune:" + "x" * 500, "spec has 509 characters; at most 400"),
        ("((((" * 90, "unknown method"),
        ("recoverable:clip=/etc,tokenizer=/etc", "clip='/etc' of recoverable names a file or a model"),
        ("atp:weights=/etc/passwd", "names a file or a model"),
    ],
)
def test_a_spec_that_can_t_be_used_is_refused_in_a_sentence(text, message):
    with pytest.raises(InputError) as error:
        controls.parse(text, 400)
    assert message in str(error.value)


def test_a_control_can_t_name_a_file_either():
    methods = controls.parse("recoverable:keep=None", 400)
    clip = next(control for control in controls.controls(methods) if control.name == "clip")
    with pytest.raises(InputError, match="names a file or a model"):
        controls.changed(methods, clip, "/etc/passwd")


def test_a_control_takes_what_its_field_is_declared_as_not_what_it_is_now():
    for text, name, given, spec_text in (
        ("tome:keep=0.5,inflection=0", "inflection", 0.5, "tome:keep=0.5,inflection=0.5"),
        ("hiprune:keep=0.5,alpha=1", "alpha", 0.25, "hiprune:keep=0.5,alpha=0.25"),
        ("random:keep=0.5", "seed", 3.0, "random:keep=0.5,seed=3"),
    ):
        methods = controls.parse(text, 400)
        control = next(each for each in controls.controls(methods) if each.name == name)
        assert controls.to_text(controls.changed(methods, control, given)) == spec_text
    huge = controls.controls(controls.parse("random:keep=0.5,seed=99999999999999999999", 400))[1]
    assert (huge.kind, huge.value) == ("text", "99999999999999999999")


def test_a_control_of_a_method_that_is_gone_says_so():
    methods = controls.parse("divprune:keep=0.5+fastv:keep=0.25", 400)
    layer = next(each for each in controls.controls(methods) if each.name == "layer")
    for left in (methods[:1], controls.parse("divprune+transprune", 400)):
        with pytest.raises(InputError, match="the spec has no layer there any more"):
            controls.changed(left, layer, 3)


def test_a_control_that_holds_nothing_usable_says_so():
    methods = controls.parse("fastv", 400)
    layer, keep = controls.controls(methods)
    for control, given in ((layer, None), (keep, "half"), (keep, None)):
        with pytest.raises(InputError, match=f"{control.name} is .*; give a number"):
            controls.changed(methods, control, given)
    with pytest.raises(InputError, match="layer=-1"):
        controls.changed(methods, layer, -1)
