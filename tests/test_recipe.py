"""Recipes: defaults in types, differences in files, and one line for whatever cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from trisense.errors import BadInput
from trisense.recipe import Recipe, World, names, read
from trisense.stage import Contexts, FileStage, ScheduledSampling, WarmupStage
from trisense.tokens import TextTokenizer

SMALL = """
name: small
design:
  text: {model_type: llama}
stages:
  warm: {learns: see, steps: 10}
  answer: {learns: answer, steps: 20, lr: 2.0e-3}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def refusal(recipe: str | Path, *overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        read(recipe, overrides)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    return str(refused.value)


@pytest.mark.parametrize("name", names())
def test_every_packaged_recipe_reads_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = read(name)
    assert recipe.name == name
    assert recipe.description
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert read(path) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_spark_is_packaged() -> None:
    assert "spark" in names()
    assert names() == sorted(names())
    assert list(read("spark").stages)[-1] == "answer"


def test_what_a_file_leaves_out_is_the_default(small: Path) -> None:
    recipe = read(small)
    assert recipe.world == World()
    assert recipe.stages["warm"] == WarmupStage(learns="see", steps=10)
    assert recipe.stages["answer"].lr == 2e-3
    assert recipe.design.vision is None


def test_overrides_change_what_they_name_and_nothing_else(small: Path) -> None:
    before = read(small).model_dump()
    changed = read(
        small,
        [
            *("stages.answer.lr=1e-4", "stages.warm.steps=7", "design.text.hidden_size=64"),
            "stages.answer.contexts.present.image=0.5",
        ],
    ).model_dump()
    assert changed["stages"]["answer"].pop("lr") == 1e-4, "YAML 1.1 reads 1e-4 as a string"
    assert changed["stages"]["warm"].pop("steps") == 7
    contexts = changed["stages"]["answer"].pop("contexts")
    assert contexts["present"] == {"image": 0.5}, "a mapping the file does not give is given by the flag"
    assert contexts["turns"] == Contexts().turns
    assert changed["design"]["text"].pop("hidden_size") == 64
    for group, key in (("answer", "lr"), ("warm", "steps"), ("answer", "contexts")):
        before["stages"][group].pop(key)
    assert changed == before


def test_a_stage_is_left_out_by_null() -> None:
    assert list(read("spark", ["stages.read_one=null", "stages.read=null"]).stages) == [
        *("read_steps", "see", "hear", "answer")
    ]


def test_the_last_override_counts_and_values_are_yaml(small: Path) -> None:
    recipe = read(
        small,
        [
            "world.pictures=2",
            "world.pictures=3",
            "design.senses={image: {width: 8}}",
            "description=a = b",
            "stages.warm.clip=2",
        ],
    )
    assert recipe.world.pictures == 3
    assert recipe.design.senses == {"image": {"width": 8}}
    assert recipe.description == "a = b"
    assert recipe.stages["warm"].clip == 2.0


def test_reading_twice_gives_the_same_and_leaves_the_package_alone(small: Path) -> None:
    read("spark", ["stages.answer.steps=1"])
    assert read("spark").stages["answer"].steps != 1
    assert read(small) == read(str(small))


@given(steps=st.integers(1, 10**9), lr=st.floats(1e-12, 1e3), bf16=st.booleans(), text=st.text("abcxyz", min_size=1))
def test_any_sensible_value_arrives(steps: int, lr: float, bf16: bool, text: str) -> None:
    precision = "bf16" if bf16 else "float32"
    stage = read(
        "spark",
        [f"stages.see.steps={steps}", f"stages.see.lr={lr!r}", f"stages.see.precision={precision}", f"name='{text}'"],
    )
    assert (stage.stages["see"].steps, stage.stages["see"].lr) == (steps, lr)
    assert stage.stages["see"].precision == precision
    assert stage.name == text


@given(st.text(max_size=30))
def test_no_override_ends_in_anything_but_a_recipe_or_one_refusal(override: str) -> None:
    try:
        recipe = read("spark", [override])
    except BadInput as error:
        assert "\n" not in str(error).replace(repr(override), "")
    else:
        assert isinstance(recipe, Recipe)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
)
def test_no_value_ends_in_anything_but_a_recipe_or_one_refusal(value: Any) -> None:
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")
    for key in ("design", "stages.see.lr", "stages.read.contexts", "design.layout", "stages"):
        try:
            assert isinstance(read("spark", [f"{key}={written}"]), Recipe)
        except BadInput as error:
            assert str(error)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("worl.pictures=1", "unknown key 'worl' (did you mean 'world'?)"),
        ("world.picture=1", "unknown key 'world.picture' (did you mean 'pictures'?)"),
        ("stages.answer.contexts.turn=1", "unknown key 'stages.answer.contexts.turn' (did you mean 'turns'?)"),
        ("stages.warm.contexts={turns: 1}", "unknown key 'stages.warm.contexts'"),
        ("stages.warm.label_smoothing=0.1", "unknown key 'stages.warm.label_smoothing'"),
        ("stages.warm.stps=1", "unknown key 'stages.warm.stps' (did you mean 'steps'?)"),
        ("design.vison={}", "unknown key 'design.vison' (did you mean 'vision'?)"),
        ("design.layout.anser=x", "unknown key 'design.layout.anser' (did you mean 'answer'?)"),
        ("design.qqqqqqq=1", "unknown key 'design.qqqqqqq'"),
        ("stages.answr.lr=1", "there is no stage 'answr' (did you mean 'answer'?); stages: warm, answer"),
        ("stages.warm.steps=many", "stages.warm.steps: "),
        ("stages.warm.steps=0", "stages.warm.steps: Input should be greater than 0, got 0"),
        ("stages.warm.steps=1.5", "stages.warm.steps: "),
        ("stages.warm.lr=-1e-3", "stages.warm.lr: Input should be greater than 0, got -0.001"),
        ("stages.warm.learns=taste", "stages.warm.learns: got 'taste'; expected one of see, hear, read"),
        ("stages.warm.learns=hera", "stages.warm.learns: got 'hera' (did you mean 'hear'?)"),
        ("stages.more={steps: 1}", "stages.more.learns is missing; one of see"),
        ("stages=[1, 2]", "stages: "),
        ("design={}", "design.text is missing"),
        ("stages.answer.contexts.present={smell: 1}", "stages.answer.contexts.present.smell"),
        ("name.first=x", "'name' holds a value, not keys"),
        ("world", "expected key=value, such as stages.answer.lr=1e-4"),
        ("=3", "expected key=value"),
        ("name={a: ", "the value is not YAML"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(small: Path, override: str, expected: str) -> None:
    assert expected in refusal(small, override)


def test_a_long_value_is_cut(small: Path) -> None:
    assert "stages.warm.steps" in refusal(small, f"stages.warm.steps={'x' * 2000}")


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    said = refusal("spork")
    assert "recipe 'spork' is unknown (did you mean 'spark'?)" in said
    assert all(name in said for name in names())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"design: [unclosed", "not a YAML file"),
        (b"a: b: c", "not a YAML file"),
        (b"\x00\x01", "not a YAML file"),
        (b"just words", "expected a mapping"),
        (b"", "expected a mapping"),
        (b"- a\n- b", "expected a mapping"),
        (b"\xff\xfe\x00name", "not UTF-8 text"),
        (b"name: x", "design is missing"),
        (b"name: x\ndesign: {text: {}}\nstages: {1: 2}", "stages.1"),
        (b"name: !!python/object:os.system x", "not a YAML file"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line_that_names_it(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    said = refusal(path)
    assert expected in said
    assert str(path) in said


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    assert "no such recipe file" in refusal(tmp_path / "nowhere.yaml")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert "no such recipe file" in refusal(folder)
    assert "is unknown" in refusal(tmp_path)


def test_a_recipe_cannot_be_changed_in_place(small: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(small).name = "other"  # type: ignore[misc]


# The published ids of phi-2's tokenizer, and the merges of GPT-2 (whose vocabulary it shares) that lead to them.
PHI2_IDS = {"ca": 6888, "ption": 1159, "\u0120image": 2939, ":": 25, "end": 437, "\u0120of": 286}
PHI2_IDS |= {"\u0120question": 1808, "comment": 23893}
PHI2_MERGES = ["c a", "o n", "e n", "en d", "o f", "e s", "t i", "c o", "i m", "a g"]
PHI2_WHOLE = {"ption": "p ti on", "\u0120image": "\u0120 im ag e", "\u0120of": "\u0120 of"}
PHI2_WHOLE |= {"\u0120question": "\u0120 q u es ti on", "comment": "co m m en t"}


def phi2() -> TextTokenizer:
    """A byte-level BPE that has these tokens under phi-2's ids, every byte, and the tokens between."""
    merges = [tuple(merge.split()) for merge in dict.fromkeys(PHI2_MERGES)]
    for pieces in PHI2_WHOLE.values():
        left, *rest = pieces.split()
        for right in rest:
            merges.append((left, right))
            left += right
    vocabulary = dict(PHI2_IDS)
    others = iter(id for id in range(51_000) if id not in PHI2_IDS.values())
    for token in [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]:
        if token not in vocabulary:
            vocabulary[token] = next(others)
    inner = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer(inner)


@pytest.mark.parametrize(
    ("name", "stage", "marker", "ids"),
    [
        ("jnana", "align", "image", [6888, 1159, 2939, 25]),
        ("jnana", "instruct", "image", [6888, 1159, 2939, 25]),
        ("jnana", "instruct", "question", [437, 286, 1808, 25]),
        ("tinyclip-phi2", "align", "image", [23893]),
    ],
)
def test_markers_are_the_published_tokens_of_phi_2(name: str, stage: str, marker: str, ids: list[int]):
    recipe = read(name)
    options = recipe.stages[stage]
    assert isinstance(options, FileStage)
    layout = options.layout or recipe.design.layout
    assert phi2().control(getattr(layout, marker).after) == ids


def test_which_recipe_answers_how():
    found = {name: read(name).answering for name in names() if "@" not in name}
    assert {name for name, answering in found.items() if answering.passes == 2} == {"ft35", "eden"}
    assert {name for name, answering in found.items() if answering.clean} == {"ft35", "eden"}
    assert {answering.describe for answering in found.values()} == {"Please describe this image."}
    whisper = {name: answering.speech for name, answering in found.items()}
    assert whisper.pop("spark") is None
    assert {speech.pretrained for speech in whisper.values() if speech} == {"openai/whisper-small"}
    assert {name: speech.first_seconds for name, speech in whisper.items() if speech} == {
        "context-gpt": None,
        "eden": None,
        "ft35": None,
        "jnana": None,
        "tinyclip-phi2": 10,
    }


def test_jnana_batches_by_the_length_of_answers_and_tinyclip_samples_its_own_words():
    jnana, tinyclip = read("jnana").stages["instruct"], read("tinyclip-phi2").stages["align"]
    assert isinstance(jnana, FileStage) and isinstance(tinyclip, FileStage)
    assert jnana.buckets == {11: 10, 17: 10, 23: 9, 40: 8, 59: 6, 79: 5, 99: 4, 119: 4}
    assert tinyclip.scheduled_sampling == ScheduledSampling(after=0.6)
    assert tinyclip.answers.longest_tokens == 35


# Recipes that begin with others


def test_a_file_holds_what_differs_from_its_base(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "base: eden\nname: mine\nstages: {instruct: {lr: 1.0e-4}}\ndesign: {adapter: {targets: [o_proj]}}\n"
    )
    mine, eden = read(tmp_path / "mine.yaml", ["stages.instruct.steps=5"]), read("eden")
    expected = eden.model_dump()
    expected["name"] = "mine"
    expected["stages"]["instruct"] |= {"lr": 1e-4, "steps": 5}
    expected["design"]["adapter"]["targets"] = ("o_proj",)
    assert mine.model_dump() == expected, "mappings are merged, lists replaced"
    (tmp_path / "short.yaml").write_text("answering: {describe: What is it}\n")
    (tmp_path / "ours.yaml").write_text("base: [mine.yaml, short.yaml]\nname: ours\n")
    ours = read(tmp_path / "ours.yaml")
    assert (ours.name, ours.answering.describe, ours.stages["instruct"].lr) == ("ours", "What is it", 1e-4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("base: edn", "recipe 'edn' is unknown (did you mean 'eden'?)"),
        ("base: other.yaml", "other.yaml: no such recipe file"),
        ("base: 3", "base: got 3; expected the name of a recipe or the path of one"),
        ("base: [eden, [x]]", "base: got ['x']; expected the name of a recipe or the path of one"),
        ("base: circle.yaml", "a recipe cannot begin with itself"),
        ("base: eden\ndesign: {adaptor: {}}", "unknown key 'design.adaptor' (did you mean 'adapter'?)"),
    ],
)
def test_a_base_that_cannot_be(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "circle.yaml"
    path.write_text(content)
    assert expected in refusal(path)


TWINS = [name for name in names() if "@" in name]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_keeps_its_design(name: str):
    """Features, projector, layout, stages and what LoRA stands beside are the design's, as far as spark has them."""
    twin, design = read(name), read(name.removesuffix("@spark"))
    assert twin.design.text == twin.design.vision == {"pretrained": "spark"}
    ours, theirs = twin.design.senses["image"], design.design.senses["image"]
    assert (ours["projector"], ours.get("layer")) == (theirs["projector"], theirs.get("layer"))
    assert ours["select"] == {"patches": "all", "projected": "pooled"}[theirs["select"]]
    end = design.design.layout.answer.after
    same = {key: pair for key, pair in design.design.layout.model_dump().items() if key != "answer"}
    assert {key: pair for key, pair in twin.design.layout.model_dump().items() if key != "answer"} == same
    assert twin.design.layout.answer == (design.design.layout.answer.before, "<|end|>")
    assert end in ("<|end|>", "<|endoftext|>")
    llama = {
        **{name: {name} for name in ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")},
        "dense": {"o_proj"},
        "fc1": {"gate_proj", "up_proj"},
        "fc2": {"down_proj"},
        "qkv_proj": {"q_proj", "k_proj", "v_proj"},
        "gate_up_proj": {"gate_proj", "up_proj"},
    }
    assert twin.design.adapter and design.design.adapter
    assert set(twin.design.adapter.targets) == set().union(*(llama[one] for one in design.design.adapter.targets))
    assert twin.design.adapter.alpha / twin.design.adapter.r == design.design.adapter.alpha / design.design.adapter.r
    assert list(twin.stages) == list(design.stages)
    for stage, options in design.stages.items():
        other = twin.stages[stage]
        assert isinstance(other, FileStage) and isinstance(options, FileStage)
        kept = ("learns", "answers", "turns", "buckets", "scheduled_sampling", "label_smoothing")
        assert {key: getattr(other, key) for key in kept} == {key: getattr(options, key) for key in kept}


# Ears


def test_every_design_can_hear_through_an_encoder():
    for name in names():
        recipe = read(name)
        if not recipe.design.senses:  # a language model alone
            continue
        assert recipe.audio == ("embed" if name == "spark" else "transcript")
        hearing = read(name, ["audio=embed"])
        if name == "spark":
            assert hearing == recipe
            continue
        assert hearing.design.audio == recipe.ears.audio and recipe.design.audio is None
        assert hearing.design.senses == {**recipe.design.senses, "audio": recipe.ears.sense}
        assert hearing.design.sounds == recipe.ears.sounds
        row = recipe.design.placeholders["image"]
        assert hearing.design.placeholders["audio"] == (row - 1 if isinstance(row, int) else "<|audio|>")
        assert Recipe.model_validate(hearing.model_dump(mode="json")) == hearing
    own = read("eden", ["audio=embed", "ears.audio.pretrained=openai/whisper-tiny", "ears.placeholder=32061"])
    assert own.design.audio == {"pretrained": "openai/whisper-tiny"}
    assert own.design.placeholders == {"image": 32063, "audio": 32061}


def test_ears_that_contradict_each_other():
    assert "audio: transcript, but design.senses.audio has ears" in refusal("spark", "audio=transcript")
    assert "audio: " in refusal("eden", "audio=both")
    assert "unknown key 'ears.encoder'" in refusal("eden", "ears.encoder=x")
