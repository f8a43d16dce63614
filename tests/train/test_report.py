"""What a run says: the curve in its window and from the start, how fast, and answers with their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from children import lines
from toy import batch_at, evaluate, stage, toy

from trisense.data.batches import Batch
from trisense.train.loop import train
from trisense.train.report import SHOWN, Answer, captioned, forget_after, read_log, samples_of, tokens_of


def test_the_loss_of_a_window_and_the_cumulative_one(tmp_path: Path):
    train(toy(), batch_at, stage(log_every=1, steps=8), tmp_path / "each", device="cpu")
    train(toy(), batch_at, stage(log_every=3, steps=8), tmp_path / "third", device="cpu")
    each = [row["loss"] for row in lines(tmp_path / "each")]
    third = lines(tmp_path / "third")
    assert [row["step"] for row in third] == [3, 6, 8]
    assert [row["loss"] for row in third] == pytest.approx([np.mean(each[:3]), np.mean(each[3:6]), np.mean(each[6:])])
    assert [row["loss_cumulative"] for row in third] == pytest.approx([np.mean(each[:n]) for n in (3, 6, 8)])


def test_how_fast_it_is_stands_apart_from_what_it_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(toy(), batch_at, stage(), tmp_path / "run", device="cpu", evaluate=evaluate)
    fast = [json.loads(line) for line in (tmp_path / "run" / "speed.jsonl").read_text().splitlines()]
    assert [row["step"] for row in fast] == [4, 6]
    for row in fast:
        assert row["samples_per_second"] > 0 and row["mfu"] > 0 and row["memory_gb"] > 0.05
    assert "tokens_per_second" not in fast[0], "rows of numbers have none"
    assert not {"samples_per_second", "mfu"} & {name for row in lines(tmp_path / "run") for name in row}
    said = capsys.readouterr().err
    assert "run: 1 process on cpu; 127 of 127 parameters learn" in said
    for word in ("loss ", " samples/s, ", " GB, MFU "):
        assert word in said.splitlines()[-1].split("\r")[-1]


def test_samples_and_real_tokens_of_a_batch():
    ids = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert (samples_of(Batch({"x": ids}, 1)), tokens_of(Batch({"x": ids}, 1))) == (2, 0)
    assert tokens_of(Batch({"input_ids": ids}, 1)) == 6
    assert tokens_of(Batch({"input_ids": ids, "attention_mask": mask}, 1)) == 5
    sees = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    sees[0, 0, :2, :2] = sees[1, 0] = True
    assert tokens_of(Batch({"input_ids": ids, "attention_mask": sees}, 1)) == 5
    assert samples_of(Batch({}, 0)) == 0
    assert samples_of(Batch({"own_words": torch.tensor(True), "x": ids}, 1)) == 2, "a scalar has no rows"
    # Packed: two samples and padding; a fan of two after one that is none.
    segments = torch.tensor([[0, 0, 1, -1, -1], [0, 1, 1, 1, 1]])
    branches = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 2, 2]])
    packed = Batch({"input_ids": segments, "segments": segments, "branches": branches}, 1)
    assert (samples_of(packed), tokens_of(packed)) == (5, 8)


def test_an_answer_is_lettered_under_its_picture():
    picture = np.full((100, 50, 3), 90, np.uint8)
    short = captioned(Answer("where?", "left", "right", picture))
    assert short.shape[1] == SHOWN and short.shape[0] == 100 + 3 * 16 + 6
    assert (short[50, SHOWN // 2] == 90).all() and (short[50, 5] == 255).all(), "in the middle, unstretched"
    assert (short[103:] < 100).any(), "letters"
    long = captioned(Answer("where?", "left and " * 30, "right", picture))
    assert long.shape[0] > short.shape[0] + 16 * 3
    assert max(captioned(Answer("", "a", "b", np.zeros((900, 1800, 3), np.uint8))).shape[:2]) == SHOWN


def test_a_line_cut_short_and_steps_not_saved_are_forgotten(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert [row["step"] for row in read_log(log)] == [1, 2, 3]
    forget_after(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    forget_after(tmp_path / "none.jsonl", 2)
    assert read_log(tmp_path / "none.jsonl") == []
