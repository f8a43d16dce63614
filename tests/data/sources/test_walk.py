"""What a walk finds in a JSON file is what Python's own reader finds, record by record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisense.data.sources.walk import MARK, Reader, is_lines, lines, walk
from trisense.errors import BadInput

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
styles = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 0, 2])})


def read(file: Path, spans: Any) -> list[Any]:
    reader = Reader(file)
    return [reader(spans, number) for number in range(len(spans))]


@given(content=st.lists(values) | st.dictionaries(texts, values), style=styles, marked=st.booleans())
def test_elements_stand_where_the_walk_says(
    tmp_path_factory: pytest.TempPathFactory, content: Any, style: dict[str, Any], marked: bool
):
    file = tmp_path_factory.mktemp("walk") / "x.json"
    file.write_bytes(MARK * marked + json.dumps(content, **style).encode())
    seen: list[tuple[str, Any]] = []
    found = walk(file, lambda key, element: seen.append((key, element)))
    if isinstance(content, list):
        assert read(file, found[""]) == content
        assert len(seen) == len(content)
        return
    as_latin = {key.encode().decode("latin-1"): value for key, value in content.items()}
    expected = as_latin if not style["ensure_ascii"] else content
    assert {key: read(file, spans) for key, spans in found.items()} == {
        key: value for key, value in expected.items() if isinstance(value, list)
    }


@given(st.lists(values.map(lambda value: {"x": value}), min_size=2), st.booleans())
def test_lines_are_found_and_numbered(tmp_path_factory: pytest.TempPathFactory, content: list[Any], marked: bool):
    file = tmp_path_factory.mktemp("walk") / "x.jsonl"
    file.write_bytes(MARK * marked + "\r\n\n".join(json.dumps(one, ensure_ascii=False) for one in content).encode())
    assert is_lines(file)
    spans, numbers = lines(file)
    assert read(file, spans) == content
    assert numbers.tolist() == list(range(1, 2 * len(content), 2))


@given(st.text(alphabet='[]{},:" 01ae.-\\tru\n', max_size=30))
def test_what_is_taken_for_json_is_json(tmp_path_factory: pytest.TempPathFactory, text: str):
    """No more is accepted than Python accepts, and no less of lists and objects."""
    file = tmp_path_factory.mktemp("walk") / "x.json"
    file.write_text(text)
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    try:
        walk(file, lambda key, element: None)
        accepted = bool(text.strip())
    except BadInput:
        accepted = False
    assert accepted == isinstance(content, list | dict)


def test_nothing_is_kept_but_places(tmp_path: Path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"a": ["long text" * 100] * 3, "b": 1}))
    found = walk(file, lambda key, element: None)
    assert set(found) == {"a"}
    assert found["a"].starts.dtype == np.int64 and len(found["a"]) == 3
