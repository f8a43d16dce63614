"""COCO's json and its like, with pictures in a folder or a zip: captions, things, regions, expressions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import decoded, jpeg, pixels, said, write_json, write_zip

from trisense.data.sources import media_of, open_source
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

IMAGES = [
    {"id": 8, "file_name": "COCO_train2014_000000000008.jpg", "width": 200, "height": 100, "license": 1},
    {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 100, "height": 100, "license": 1},
]
CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 37, "name": "sports ball"}]


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    listed = [{"id": number, **one} for number, one in enumerate(annotations, 100)]
    return {"info": {"year": 2014}, "licenses": [], "images": IMAGES, "annotations": listed, **more}


def asked_and_answered(source: Any) -> list[tuple[str, str]]:
    """Of each sample the question, and the answer."""
    found = []
    for one in source:
        (_, shown), (_, (answer,)) = said(one)
        found.append((" ".join(shown[1:]), answer))
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("year", [2014, 2017])
def test_captions_with_a_folder_or_a_zip_of_either_year(tmp_path: Path, packed: bool, year: int):
    annotations = [
        {"image_id": 8, "caption": " A  dog\n"},
        {"image_id": 7, "caption": "Ein Käse."},
        {"image_id": 8, "caption": "One dog."},
    ]
    file = write_json(tmp_path / "captions_train2014.json", coco(*annotations))
    names = {8: "000000000008.jpg", 7: "000000000007.jpg"}
    members = {f"{'COCO_train2014_' if year == 2014 else ''}{name}": jpeg(id) for id, name in names.items()}
    if packed:
        media = write_zip(tmp_path / f"train{year}.zip", {f"train{year}/{k}": v for k, v in members.items()})
    else:
        media = tmp_path / f"train{year}"
        media.mkdir()
        for name, data in members.items():
            (media / name).write_bytes(data)
    found = open_source(file, media)
    found.check_media()
    assert asked_and_answered(found) == [("", "A dog"), ("", "Ein Käse."), ("", "One dog.")]
    assert media_of(found[0]) == media_of(found[2])
    for sample, id in zip(found, (8, 7, 8), strict=True):
        assert np.array_equal(pixels(sample)[0], decoded(jpeg(id)))
    assert found.where(1) == f"{file}: annotations[1]"


def test_things_of_a_picture_the_largest_first_as_the_encoder_sees_them(tmp_path: Path):
    annotations = [
        {"image_id": 8, "category_id": 37, "bbox": [100, 50, 10, 10], "iscrowd": 0},
        {"image_id": 7, "category_id": 18, "bbox": [0, 0, 50, 100], "iscrowd": 0, "segmentation": [[0, 0, 1, 1]]},
        {"image_id": 8, "category_id": 18, "bbox": [60, 20, 50, 60], "iscrowd": 0},
        {"image_id": 8, "category_id": 18, "bbox": [0, 0, 200, 100], "iscrowd": 1},
        {"image_id": 8, "category_id": 18, "bbox": [0, 0, 40, 40], "iscrowd": 0},
    ]
    file = write_json(tmp_path / "instances_train2014.json", coco(*annotations, categories=CATEGORIES))
    whole = open_source(file)
    assert asked_and_answered(whole) == [
        ("", "dog [0.000, 0.000, 0.500, 1.000]"),
        (
            "",
            "dog [0.300, 0.200, 0.550, 0.800]; dog [0.000, 0.000, 0.200, 0.400]; "
            "sports ball [0.500, 0.500, 0.550, 0.600]",
        ),
    ]
    cropped = open_source(file, pictures=ImageProcessor(height=224, width=224, tokens=1))
    assert asked_and_answered(cropped) == [
        ("", "dog [0.000, 0.000, 0.500, 1.000]"),
        ("", "dog [0.100, 0.200, 0.600, 0.800]; sports ball [0.500, 0.500, 0.600, 0.600]"),
    ]
    only = write_json(tmp_path / "only.json", coco(annotations[4], categories=CATEGORIES))
    with pytest.raises(BadInput, match=r"only\.json: image 8: none of its boxes lies in what the encoder sees"):
        open_source(only, pictures=ImageProcessor(height=224, width=224, tokens=1))[0]


def test_captions_of_regions_ask_both_ways(tmp_path: Path):
    file = write_json(tmp_path / "regions.json", coco({"image_id": 7, "caption": "a dog", "bbox": [10, 20, 30, 40]}))
    assert asked_and_answered(open_source(file)) == [
        (
            "Please provide the bounding box coordinate of the region this sentence describes: a dog",
            "[0.100, 0.200, 0.400, 0.600]",
        ),
        ("Please provide a short description for this region: [0.100, 0.200, 0.400, 0.600]", "a dog"),
    ]


def test_captions_with_the_boxes_of_what_they_name(tmp_path: Path):
    images = [{**IMAGES[1], "caption": "A dog with a ball on grass."}]
    annotations = [
        {"image_id": 7, "bbox": [50, 50, 10, 10], "category_id": 1, "tokens_positive": [[11, 17]]},
        {"image_id": 7, "bbox": [0, 0, 50, 100], "category_id": 1, "tokens_positive": [[0, 1], [2, 5]]},
    ]
    file = write_json(tmp_path / "final_mixed_train.json", {**coco(*annotations), "images": images})
    assert asked_and_answered(open_source(file)) == [
        ("", "A dog [0.000, 0.000, 0.500, 1.000] with a ball [0.500, 0.500, 0.600, 0.600] on grass.")
    ]


REFS = [
    {
        "ref_id": 1,
        "ann_id": 101,
        "image_id": 7,
        "file_name": "COCO_train2014_000000000007_1.jpg",
        "split": "train",
        "sentences": [{"sent": "left dog", "raw": "Left dog", "tokens": ["left", "dog"]}, {"sent": "the dog"}],
    },
    {"ref_id": 2, "ann_id": 100, "image_id": 8, "split": "testA", "sentences": [{"sent": "ball"}]},
]
THINGS = [
    {"image_id": 8, "category_id": 37, "bbox": [100, 50, 10, 10]},
    {"image_id": 7, "category_id": 18, "bbox": [0, 0, 50, 100]},
]


@pytest.mark.parametrize("protocol", [0, 2, 4, None])
def test_refcoco_learns_from_its_training_split_only(tmp_path: Path, protocol: int | None):
    write_json(tmp_path / "instances.json", coco(*THINGS, categories=CATEGORIES))
    if protocol is None:
        file = write_json(tmp_path / "refs.json", REFS)
    else:
        file = tmp_path / "refs(unc).p"
        file.write_bytes(pickle.dumps(REFS, protocol))
    found = open_source(file, tmp_path)
    assert asked_and_answered(found) == [
        (
            "Please provide the bounding box coordinate of the region this sentence describes: left dog",
            "[0.000, 0.000, 0.500, 1.000]",
        ),
        ("Please provide a short description for this region: [0.000, 0.000, 0.500, 1.000]", "left dog"),
        (
            "Please provide the bounding box coordinate of the region this sentence describes: the dog",
            "[0.000, 0.000, 0.500, 1.000]",
        ),
        ("Please provide a short description for this region: [0.000, 0.000, 0.500, 1.000]", "the dog"),
    ]
    assert Path(str(media_of(found[0])[0])).name == "COCO_train2014_000000000007.jpg", "not the name in the refs"
    assert found.left_out == {"of the split testA": 2}


class Hostile:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of a pickle was run')",))


def test_a_pickle_runs_no_code(tmp_path: Path):
    write_json(tmp_path / "instances.json", coco(*THINGS))
    for protocol in (0, 2, 4):
        file = tmp_path / "refs.p"
        file.write_bytes(pickle.dumps([{**REFS[0], "sentences": Hostile()}], protocol))
        with pytest.raises(BadInput, match="only plain values are read"):
            open_source(file)
    file.write_bytes(pickle.dumps(REFS)[:-20])
    with pytest.raises(BadInput, match=r"refs\.p: cannot be read"):
        open_source(file)
    (tmp_path / "instances.json").unlink()
    with pytest.raises(BadInput, match=r"instances\.json: no such file; the boxes of refs\.p are in it"):
        open_source(file)
