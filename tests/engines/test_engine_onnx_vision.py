"""Labels, boxes and lines of text out of pictures.

The classifier of colours and the detector are synthetic (their configs say so), with answers that can be computed; the
text's direction and its reading are by PaddleOCR's real networks.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.adapters import detecting
from octonode.engines.adapters.onnx_vision import OnnxVisionMaker, labels_of, probabilities
from octonode.engines.adapters.preprocessing import Preprocessing, preprocessing_of
from octonode.engines.adapters.rapid_ocr import RapidOcrMaker
from octonode.engines.contract import LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.vision import ClassifyRequest, DetectRequest, ReadRequest
from tests.engines.makers import NOTHING, ROOT, plain, png, squares, unheard, written

pytestmark = pytest.mark.model


async def one(maker: Any, request: Any) -> Any:
    [outcome] = await maker.make([request], unheard)
    if isinstance(outcome, OctonodeError):
        raise outcome
    return outcome


# -- Labels -----------------------------------------------------------------------------------------------------------


async def test_the_likeliest_labels_come_first(loaded):
    maker = loaded(OnnxVisionMaker, "colours-synthetic")
    for colour, name in (("red", "red"), ("lime", "green"), ("blue", "blue")):
        found = await one(maker, ClassifyRequest(png(plain(colour))))
        assert found.labels[0].name == name
        # one channel at 1, two at -1, times five: e^5 / (e^5 + 2 e^-5)
        assert found.labels[0].score == pytest.approx(np.exp(5) / (np.exp(5) + 2 * np.exp(-5)), abs=1e-4)
        assert sum(label.score for label in found.labels) == pytest.approx(1)
    assert len((await one(maker, ClassifyRequest(png(plain("red")), top=2))).labels) == 2


async def test_a_real_classifier_tells_which_way_is_up(loaded):
    maker = loaded(OnnxVisionMaker, "text-direction")
    line = written("Twelve boats", width=240)
    for picture, name in ((line, "upright"), (line.rotate(180), "upside_down")):
        best = (await one(maker, ClassifyRequest(png(picture)))).labels[0]
        assert (best.name, best.score > 0.9) == (name, True)


def test_probabilities_add_up_to_one_however_the_network_ends():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert probabilities(logits) == pytest.approx([0.0900, 0.2447, 0.6652], abs=1e-4)
    assert probabilities(np.array([0.2, 0.8], np.float32)) == pytest.approx([0.2, 0.8]), "a softmax is not made twice"
    assert probabilities(logits, many=True) == pytest.approx([0.7311, 0.8808, 0.9526], abs=1e-4)
    assert probabilities(np.array([1e30, -1e30], np.float32)).tolist() == [1, 0]


def test_labels_are_read_as_they_are_written():
    assert labels_of({"id2label": {"0": "cat", "1": "dog"}}) == {0: "cat", 1: "dog"}
    assert labels_of({"names": ["cat", "dog"]}) == {0: "cat", 1: "dog"}
    assert labels_of({}) == {}
    with pytest.raises(OctonodeError, match="no numbers"):
        labels_of({"id2label": {"cat": 0}})


# -- Boxes ------------------------------------------------------------------------------------------------------------


async def test_boxes_are_in_pixels_of_the_picture_and_each_thing_is_found_once(loaded):
    """640 x 320 is fitted into 160 x 160: a pixel of the network is four of the picture."""
    maker = loaded(OnnxVisionMaker, "squares-synthetic")
    drawn = (("red", 100, 48, 300, 152), ("blue", 400, 200, 500, 300))
    found = await one(maker, DetectRequest(png(squares(*drawn, size=(640, 320)))))
    assert (found.width_pixels, found.height_pixels) == (640, 320)
    assert [each.label for each in found.objects] == ["red", "blue"]
    for each, (_, *corners) in zip(found.objects, drawn, strict=True):
        assert each.score == pytest.approx(0.95, abs=1e-3)
        assert [each.box.left, each.box.top, each.box.right, each.box.bottom] == pytest.approx(corners, abs=4)


async def test_thresholds_and_counts_are_kept(loaded):
    maker = loaded(OnnxVisionMaker, "squares-synthetic")
    picture = png(squares(("red", 20, 20, 120, 120), ("lime", 160, 160, 300, 300)))
    both = await one(maker, DetectRequest(picture, score_least=0.9))
    assert len(both.objects) == 2
    assert (await one(maker, DetectRequest(picture, score_least=0.96))).objects == ()
    assert len((await one(maker, DetectRequest(picture, most=1))).objects) == 1
    overlapping = await one(maker, DetectRequest(picture, overlap_most=1.0))
    assert len(overlapping.objects) == 6, "the echoes that suppression drops"
    assert [each.score for each in overlapping.objects] == sorted((e.score for e in overlapping.objects), reverse=True)
    assert (await one(maker, DetectRequest(png(plain("black"))))).objects == ()


async def test_a_box_never_leaves_the_picture(loaded):
    maker = loaded(OnnxVisionMaker, "squares-synthetic")
    found = await one(maker, DetectRequest(png(squares(("red", 0, 0, 320, 90), size=(320, 90))), overlap_most=1.0))
    assert found.objects
    for each in found.objects:
        assert 0 <= each.box.left < each.box.right <= 320
        assert 0 <= each.box.top < each.box.bottom <= 90


def test_the_shapes_of_detectors_are_told_apart():
    assert detecting.layout_of((84, 8400), 80) == (False, False)
    assert detecting.layout_of((8400, 84), 80) == (True, False)
    assert detecting.layout_of((25200, 85), 80) == (True, True)
    assert detecting.layout_of((84, 8400), 0) == (False, False)
    for shape, classes in (((84, 8400), 3), ((4, 100), 0)):
        with pytest.raises(OctonodeError) as caught:
            detecting.layout_of(shape, classes)
        assert caught.value.code == "FORMAT_REFUSED"


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_what_is_suppressed_has_a_better_one_of_its_class_over_it(count, classes, seed, overlap_most):
    random = np.random.default_rng(seed)
    low = random.uniform(0, 50, (count, 2))
    corners = np.concatenate([low, low + random.uniform(1, 50, (count, 2))], axis=1)
    kinds = random.integers(0, classes, count)
    kept = detecting.suppressed(corners, kinds, overlap_most, 1000)

    def overlap(a: int, b: int) -> float:
        sides = np.minimum(corners[a, 2:], corners[b, 2:]) - np.maximum(corners[a, :2], corners[b, :2])
        shared = float(np.prod(np.maximum(sides, 0)))
        areas = [float(np.prod(corners[each, 2:] - corners[each, :2])) for each in (a, b)]
        return shared / (sum(areas) - shared)

    for index in range(count):
        covered = [k for k in kept if k < index and kinds[k] == kinds[index] and overlap(k, index) > overlap_most]
        assert (index in kept) == (not covered)


# -- What the network sees --------------------------------------------------------------------------------------------


def test_pictures_become_what_the_config_says():
    config = {
        "size": {"height": 4, "width": 6},
        "do_normalize": True,
        "image_mean": [0.5, 0.0, 0.0],
        "image_std": [0.5, 1.0, 1.0],
        "do_flip_channel_order": True,
    }
    read = preprocessing_of(config, (-1, 3, -1, -1), letterbox=False)
    values, _ = read.apply(plain("red", 12, 8))
    assert values.shape == (3, 4, 6)
    assert values[:, 0, 0].tolist() == [0, 0, 1], "blue first, and red is (1 - 0.5) / 0.5"
    assert preprocessing_of({}, (1, 3, 32, 48), letterbox=False).apply(plain("red"))[0].shape == (3, 32, 48)
    assert preprocessing_of({}, (1, 32, 48, 3), letterbox=False).apply(plain("red"))[0].shape == (32, 48, 3)
    raw = preprocessing_of({"do_rescale": False, "size": 8}, (-1, 3, -1, -1), letterbox=False)
    assert raw.apply(plain("red"))[0].max() == 255
    for shape in ((-1, 1, 28, 28), (-1, 10)):
        with pytest.raises(OctonodeError, match="no picture"):
            preprocessing_of({}, shape, letterbox=False)
    with pytest.raises(OctonodeError, match="pixels"):
        preprocessing_of({"size": 10**6}, (-1, 3, -1, -1), letterbox=False)


def test_the_middle_is_cut_out_of_what_is_not_square():
    config = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
    picture = plain("red", 128, 64)
    picture.paste((0, 0, 255), (32, 0, 96, 64))  # the middle
    values, frame = preprocessing_of(config, (-1, 3, -1, -1), letterbox=False).apply(picture)
    assert values.shape == (3, 28, 28)
    assert values[2, :, 1:-1].min() > 0.9, "blue from edge to edge"
    assert frame.back(np.array([[0, 0, 28, 28]], np.float32))[0].tolist() == [36, 4, 92, 60]


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_letterbox_keeps_proportions_and_leads_back(width, height):
    values, frame = Preprocessing(64, 48, letterbox=True).apply(plain("white", width, height))
    corners = np.array([[0, 0, width, height]], np.float32)
    there = corners.copy()
    there[:, 0::2] = corners[:, 0::2] * frame.scale_x + frame.left
    there[:, 1::2] = corners[:, 1::2] * frame.scale_y + frame.top
    assert frame.back(there)[0] == pytest.approx(corners[0], abs=0.01)
    left, top, right, bottom = there[0].round().astype(int)
    inside = values[:, top:bottom, left:right]
    assert inside.min() > 0.99
    assert (values < 0.99).sum() == values.size - inside.size, "all else is grey"


async def test_a_graph_that_is_no_vision_model_is_refused(tmp_path, model_folder, loaded):
    for name in ("minilm-int8", "silero-vad"):
        with pytest.raises(OctonodeError) as caught:
            await OnnxVisionMaker().load(LoadRequest("onnx-vision", model_folder(name), ROOT), tmp_path)
        assert caught.value.code == "FORMAT_REFUSED"
    folder = tmp_path / "squares"
    shutil.copytree(model_folder("squares-synthetic"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "thing"}}), "utf-8")
    with pytest.raises(OctonodeError, match="1 labels"):
        await OnnxVisionMaker().load(LoadRequest("onnx-vision", folder, ROOT), tmp_path)
    with pytest.raises(OctonodeError) as caught:
        loaded(OnnxVisionMaker, "squares-synthetic").key(ClassifyRequest(NOTHING))
    assert caught.value.code == "UNSUPPORTED"
    assert "detect" in caught.value.message


# -- Lines of text ----------------------------------------------------------------------------------------------------


async def test_text_that_was_drawn_is_read_from_top_to_bottom(loaded):
    maker = loaded(RapidOcrMaker, "ocr")
    lines = ("Octonode reads 1234", "The second line", "and a third")
    found = await one(maker, ReadRequest(png(written(*lines, width=560))))
    assert [line.text for line in found.lines] == list(lines)
    assert (found.width_pixels, found.height_pixels) == (560, 180)
    for number, line in enumerate(found.lines):
        assert line.score > 0.8
        assert number * 60 - 5 <= line.box.top < line.box.bottom <= number * 60 + 65
        assert 10 <= line.box.left < 30
        assert 150 < line.box.right <= 560


async def test_upside_down_empty_and_doubtful_text(loaded):
    maker = loaded(RapidOcrMaker, "ocr")
    page = written("Twelve boats", width=320, line_pixels=120)
    assert [line.text for line in (await one(maker, ReadRequest(png(page.rotate(180))))).lines] == ["Twelve boats"]
    assert (await one(maker, ReadRequest(png(plain("white", 200, 200))))).lines == ()
    assert (await one(maker, ReadRequest(png(page), score_least=1.0))).lines == ()
    with pytest.raises(OctonodeError) as caught:
        await one(maker, ReadRequest(NOTHING))
    assert caught.value.code == "BAD_REQUEST"


async def test_a_reader_without_its_files_is_refused(tmp_path, model_folder):
    folder = tmp_path / "ocr"
    shutil.copytree(model_folder("ocr"), folder)
    (folder / "recognition.onnx").unlink()
    with pytest.raises(OctonodeError) as caught:
        await RapidOcrMaker().load(LoadRequest("rapidocr", folder, ROOT), tmp_path)
    assert caught.value.code == "FORMAT_REFUSED"
    assert "recognition.onnx" in caught.value.message
