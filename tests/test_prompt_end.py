"""The prompt decides, and nothing behind it: drafts, tokens of former steps, an answer whose likelihood is asked for.

The right values come from calls with nothing behind the prompt: step-by-step decoding with a cache, each row alone.
"""

import warnings

import pytest
import torch
from contract import EVERY, IN_STEPS, NUMBERED, each_alone, greedy, model_of, stepwise
from covering import product
from families import Row, scenario
from test_prune_decode import REVIVING
from test_prune_decode import SPECS as DECODING

import vtc
from vtc.spec import parse

pytestmark = pytest.mark.usefixtures("no_grad")

#: Those of which later tokens choose nothing, and further forms that look at the text in their own way.
SPECS = [spec for spec in DECODING if spec not in REVIVING] + [
    "sparsevlm:keep=0.5,version=plus",
    "sparsevlm:rank=(2,1)",
    "holitom_inner:keep=0.5,causal=False",
    "spatten:keep=0.5,query_rows=text,normalise=num_queries",
    "atp_tf:keep=None",
    "utrc:keep=0.5,rule=score",
    "fastv:layer=1,keep=0.5+token_skip:keep=0.5,dense=3",
]
FAMILIES = (
    "llava",
    "llava_next",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "smolvlm",
    "gemma3",
    "mistral3",
    "ernie4_5_vl_moe",
)
ANSWERS = ([60, 61, 62], [100, 17, 33, 21, 44])


def answered(inputs: dict, answers) -> dict:
    """Inputs of a batch with an answer behind each row; shorter ones are padded on the right."""
    longest, longer = max(map(len, answers)), dict(inputs)
    blank = inputs["input_ids"].new_zeros(len(answers), longest)
    there = torch.tensor([[int(place < len(answer)) for place in range(longest)] for answer in answers])
    ids = torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers])
    marks = {"input_ids": ids, "attention_mask": there}
    for name in (name for name, value in inputs.items() if value.shape == inputs["input_ids"].shape):
        longer[name] = torch.cat([inputs[name], marks.get(name, blank).to(inputs[name].dtype)], dim=1)
    return longer


def step_by_step(model, inputs: dict, answer: list[int]) -> tuple[torch.Tensor, list]:
    """Logits [answer + 1, vocabulary] in front of and behind each token of the answer; what the prompt alone keeps."""
    output = model(**inputs, use_cache=True)
    kept = [image.kept().tolist() for image in vtc.trace(model).images]
    logits, length = [output.logits[0, -1]], inputs["input_ids"].shape[1]
    offset = getattr(model.model, "rope_deltas", None)
    for step, token in enumerate(answer):
        mask = torch.ones(1, length + step + 1, dtype=torch.long)
        given = {"input_ids": torch.tensor([[token]]), "attention_mask": mask}
        if offset is not None:
            given["position_ids"] = (torch.tensor([[length + step]]) + offset)[None].expand(3, -1, -1)
        logits.append(model(**given, past_key_values=output.past_key_values).logits[0, -1])
    return torch.stack(logits), kept


def numbered(spec: str, given: dict) -> dict:
    """With the places that `generate` would give, for methods whose choice hangs on them; Qwen-VL makes them itself."""
    if not NUMBERED & {part.partition(":")[0] for part in spec.split("+")} or "image_grid_thw" in given:
        return given
    return given | {"position_ids": (given["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


@product(family=FAMILIES, spec=SPECS, each="value")
def test_likelihoods_equal_step_by_step_decoding(family, spec):
    model, rows = model_of(family), scenario(EVERY[family], "ragged")
    answers = [ANSWERS[index % 2] for index in range(len(rows))]
    inputs = EVERY[family].inputs(model, rows)
    length = inputs["input_ids"].shape[1]
    with vtc.patched(model, spec):
        with vtc.prompt_length(model, length):
            told = model(**numbered(spec, answered(inputs, answers))).logits
        images = vtc.trace(model).images
        for row, (alone, answer) in enumerate(zip(each_alone(EVERY[family], model, rows), answers)):
            wanted, chosen = step_by_step(model, alone, answer)
            assert [image.kept().tolist() for image in images if image.row == row] == chosen
            got = told[row, length - 1 : length + len(answer)]
            torch.testing.assert_close(got.log_softmax(-1), wanted.log_softmax(-1), atol=5e-4, rtol=1e-4)


@product(spec=SPECS, each="value")
def test_without_being_told_the_rows_last_token_ends_the_prompt(spec):
    """So that an answer may change what is kept; that it does for one at least shows that the tests above can fail."""
    model, rows = model_of("llava"), [Row(((4, 4),), 2)]
    inputs = EVERY["llava"].inputs(model, rows)
    longer = answered(inputs, ANSWERS[:1])
    with vtc.patched(model, spec):
        logits = model(**longer).logits
        with vtc.prompt_length(model, longer["input_ids"].shape[1]):
            assert torch.equal(model(**longer).logits, logits)


@pytest.mark.parametrize("spec", ["token_skip:keep=0.5", "token_skip:keep=0.25", "fastv:layer=1+token_skip:keep=0.5"])
@pytest.mark.parametrize("answer", [[60], [60, 61, 62], [100] * 12])
def test_where_several_layers_in_a_row_are_skipped(spec, answer):
    family = EVERY["llava"]
    model = family.build(num_hidden_layers=9)
    inputs = family.inputs(model, [Row(((4, 4),), 2)])
    length = inputs["input_ids"].shape[1]
    with vtc.patched(model, spec):
        wanted, _ = step_by_step(model, inputs, answer)
        with vtc.prompt_length(model, length):
            told = model(**answered(inputs, [answer])).logits[0, length - 1 :]
        torch.testing.assert_close(told, wanted, atol=5e-4, rtol=1e-4)
        assert torch.equal(greedy(model, inputs, 4, use_cache=False), greedy(model, inputs, 4))


def test_an_answer_that_is_not_told_from_the_prompt_changes_its_prediction():
    model, family = model_of("llava"), EVERY["llava"]
    inputs = family.inputs(model, [Row(((4, 4),), 2)])
    last, longer = inputs["input_ids"].shape[1] - 1, answered(inputs, ANSWERS[:1])
    with vtc.patched(model, "fastv:layer=2,keep=0.25"):
        alone = model(**inputs).logits[0, last]
        assert (model(**longer).logits[0, last] - alone).abs().max() > 1e-3
        with vtc.prompt_length(model, last + 1):
            assert (model(**longer).logits[0, last] - alone).abs().max() < 1e-5


# ---------------------------------------------------------------- generate


def kept(model) -> list:
    return [image.kept().tolist() for image in vtc.trace(model).images]


@product(family=("llava", "qwen2_5_vl", "internvl", "mistral3"), spec=SPECS, how=["assistant", "lookup", "no cache"])
def test_drafts_and_steps_without_a_cache_change_nothing(family, spec, how):
    model, inputs = model_of(family), EVERY[family].inputs(model_of(family), [Row((EVERY[family].sizes[1],), 2)])
    more = {
        "assistant": {"assistant_model": EVERY[family].build()},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "no cache": {"use_cache": False},
    }[how]
    with vtc.patched(model, spec):
        plain = stepwise(model, inputs, 6)
        chosen = kept(model)
        other = stepwise(model, inputs, 6, **more)
        assert kept(model) == chosen
    assert torch.equal(plain.sequences, other.sequences)
    torch.testing.assert_close(torch.stack(plain.logits), torch.stack(other.logits), atol=5e-4, rtol=1e-4)


@product(spec=SPECS, each="value")
def test_in_a_later_turn_what_the_cache_holds_is_part_of_the_prompt(spec):
    """Transformers itself can't draft in a second turn with pictures, so the answer is fed."""
    family, model = EVERY["llava"], model_of("llava")
    first, second = (family.inputs(model, [Row(((4, 4),), index)]) for index in (2, 11))

    def turn(given):
        cache = model(**first, use_cache=True).past_key_values
        mask = torch.cat([first["attention_mask"], given["attention_mask"]], dim=1)
        logits = model(**{**given, "attention_mask": mask}, past_key_values=cache).logits[0]
        return logits[: second["input_ids"].shape[1]], kept(model)

    with vtc.patched(model, spec):
        wanted, chosen = turn(second)
        with vtc.prompt_length(model, first["input_ids"].shape[1] + second["input_ids"].shape[1]):
            got, also = turn(answered(second, ANSWERS[:1]))
    assert also == chosen
    torch.testing.assert_close(got[-1], wanted[-1], atol=5e-4, rtol=1e-4)


def test_the_prompt_of_embeddings_is_known_too():
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    embeds = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]), **inputs}
    ids = embeds.pop("input_ids")
    with vtc.patched(model, "fastv:layer=2,keep=0.25"):
        wanted = greedy(model, {"input_ids": ids, **inputs}, 5)[:, -5:]
        for more in ({}, {"use_cache": False}):
            assert torch.equal(greedy(model, embeds, 5, **more)[:, -5:], wanted)


def test_a_generate_whose_prompt_is_not_seen_is_refused(monkeypatch):
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    with vtc.patched(model, "fastv:layer=2,keep=0.25"):
        monkeypatch.setattr("vtc.seam.prompt.ending.inputs_given", lambda output: None)
        with pytest.raises(RuntimeError, match=r"where its prompt ends was not seen.*vtc\.prompt_length"):
            greedy(model, inputs, 2)
        monkeypatch.undo()
        greedy(model, inputs, 2)


# ---------------------------------------------------------------- labels


@product(family=("llava", "qwen2_5_vl", "gemma3"), spec=SPECS, each="value")
def test_labels_tell_where_the_prompt_ends(family, spec):
    """One row with its answer padded on the right, one whose prompt begins later."""
    model, rows = model_of(family), scenario(EVERY[family], "ragged")[:2]
    inputs = EVERY[family].inputs(model, rows)
    length = inputs["input_ids"].shape[1]
    longer = answered(inputs, ANSWERS)
    labels = longer["input_ids"].masked_fill(longer["attention_mask"] == 0, -100)
    labels[:, :length] = -100
    with vtc.patched(model, spec), torch.enable_grad():
        with vtc.prompt_length(model, length):
            told = model(**longer).logits
        output = model(**longer, labels=labels)
        output.loss.backward()
    assert torch.equal(output.logits, told)
    model.zero_grad(set_to_none=True)


def test_labels_in_front_of_a_picture_are_said_not_to_tell():
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    with vtc.patched(model, "fastv:layer=2,keep=0.25"):
        plain = model(**inputs).logits
        with pytest.warns(UserWarning, match=r"labels of row 0 begin in front of a visual token.*prompt_length"):
            labelled = model(**inputs, labels=inputs["input_ids"]).logits
        assert torch.equal(plain, labelled)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**inputs, labels=inputs["input_ids"])  # it is said once


def test_selectors_that_read_no_text_do_not_ask():
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    with vtc.patched(model, "divprune:keep=0.25"), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs, labels=inputs["input_ids"])


# ---------------------------------------------------------------- selectors that read the question


def test_a_selector_reads_the_question_and_not_the_answer():
    family, model = EVERY["internvl"], model_of("internvl")
    inputs = family.inputs(model, [Row((family.sizes[1],), 2)])
    with vtc.patched(model, "recoverable:keep=0.5"):
        wanted = greedy(model, inputs, 8)
        chosen = kept(model)
        for answer in ([60, 61, 62], [100] * 12):
            model(**answered(inputs, [answer]))
            assert kept(model) != chosen  # where nobody tells, it is read with the question
            with vtc.prompt_length(model, inputs["input_ids"].shape[1]):
                model(**answered(inputs, [answer]))
            assert kept(model) == chosen
        assert torch.equal(greedy(model, inputs, 8, use_cache=False), wanted)
        assert kept(model) == chosen


def test_in_packed_rows_labels_tell_where_each_samples_question_ends():
    family, model = EVERY["internvl"], model_of("internvl")
    prompts = [family.inputs(model, [Row((family.sizes[1],), index)]) for index in (2, 11)]
    ids = [torch.cat([x["input_ids"], torch.tensor([answer])], dim=1) for x, answer in zip(prompts, ANSWERS)]
    positions = [torch.arange(row.shape[1])[None] for row in ids]
    labels = [row.clone() for row in ids]
    for own, prompt in zip(labels, prompts):
        own[:, : prompt["input_ids"].shape[1]] = -100
    with vtc.patched(model, "recoverable:keep=0.5"):
        wanted = []
        for prompt in prompts:
            model(**prompt)
            wanted += kept(model)
        packed = {
            "input_ids": torch.cat(ids, dim=1),
            "position_ids": torch.cat(positions, dim=1),
            "pixel_values": torch.cat([prompt["pixel_values"] for prompt in prompts]),
            "labels": torch.cat(labels, dim=1),
            "use_cache": False,
        }
        output = model(**packed)
        assert kept(model) == wanted and output.loss.isfinite()
        model(**{name: value for name, value in packed.items() if name != "labels"})
        assert kept(model) != wanted
        with pytest.raises(ValueError, match="several samples"), vtc.prompt_length(model, 30):
            model(**packed)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "length, error, message",
    [
        (0, ValueError, "is no length"),
        (-3, ValueError, "is no length"),
        ([], ValueError, "is no length"),
        (True, TypeError, "no whole number"),
        (30.0, TypeError, "no whole number"),
        ("30", TypeError, "no whole number"),
        ([30, 2.5], TypeError, "no whole number"),
    ],
)
def test_lengths_that_are_none(length, error, message):
    model = model_of("llava")
    with vtc.patched(model, "fastv"), pytest.raises(error, match=message), vtc.prompt_length(model, length):
        pass


def test_a_prompt_that_ends_within_its_picture_is_refused():
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    with vtc.patched(model, "fastv"):
        with (
            vtc.prompt_length(model, 5),
            pytest.raises(ValueError, match=r"row 0 has 5 tokens, and token \d+ is a vis"),
        ):
            model(**inputs)
        with vtc.prompt_length(model, [30, 30]), pytest.raises(ValueError, match="2 lengths for 1 rows"):
            model(**inputs)
        model(**inputs)


def test_an_untouched_model_has_nobody_to_tell():
    with pytest.raises(ValueError, match=r"not patched.*vtc\.patch"), vtc.prompt_length(model_of("llava"), 30):
        pass


@pytest.mark.parametrize("more", [{"use_cache": False}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_a_method_whose_steps_choose_anew_says_what_it_cannot_do(more):
    model, inputs = model_of("llava"), EVERY["llava"].inputs(model_of("llava"), [Row(((4, 4),), 2)])
    with vtc.patched(model, "lazyllm:keep=0.5"):
        with pytest.raises(ValueError, match="revive=False"):
            greedy(model, inputs, 3, **more)
        with vtc.prompt_length(model, inputs["input_ids"].shape[1]), pytest.raises(ValueError, match="revive=False"):
            model(**answered(inputs, ANSWERS[:1]))


def test_every_prune_is_among_them():
    known = {method.name for spec in SPECS for method in parse(spec)}
    assert known | IN_STEPS >= set(vtc.list_methods("prune")) - {
        name for name in vtc.list_methods("prune") if "test-" in name
    }
