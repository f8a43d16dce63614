from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pack

from trisense.data.real.pack import Pack


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return Pack(tiny_pack.write(tmp_path_factory.mktemp("pack")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_pack.write(tmp_path)
