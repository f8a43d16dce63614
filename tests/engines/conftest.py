"""What the tests of other people's models share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_words_for_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM's processor asks for num2words, which writes how many frames a video has; here nobody shows one."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
