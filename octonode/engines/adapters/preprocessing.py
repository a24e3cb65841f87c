"""From a picture to the numbers that a network wants, as its preprocessor_config.json says, and boxes on the way back.

Source of the keys: https://huggingface.co/docs/transformers/main_classes/image_processor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from octonode.errors import OctonodeError

Pixels = npt.NDArray[np.float32]

SIDE_MAX: Final = 4096
"""Pixels of a side that a network may ask for."""
SIDE_DEFAULT: Final = 224
GREY: Final = (114, 114, 114)
"""Around a picture that is fitted into a frame of another shape, as YOLO was trained with it."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, where a file asks for normalising and says no numbers."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a picture lies in what the network saw: network pixels = picture pixels * scale + offset."""

    width_pixels: int
    height_pixels: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def back(self, corners: Pixels) -> Pixels:
        """[boxes, (left, top, right, bottom)] in network pixels -> in the picture's, within it."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        most = np.array([self.width_pixels, self.height_pixels] * 2, np.float32)
        return np.asarray(np.clip((corners - offset) / scale, 0, most), np.float32)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to each picture, in this order."""

    width: int
    height: int
    shortest_edge: int = 0
    """Scale so that the shorter side has this many pixels, then cut `width` x `height` from the middle; 0: do not."""
    letterbox: bool = False
    """Keep the picture's proportions and fill up with grey."""
    resample: int = 2
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    blue_first: bool = False
    channels_last: bool = False

    def apply(self, picture: Image.Image) -> tuple[Pixels, Frame]:
        """([3, height, width], or channels last; where the picture lies in it)."""
        placed, frame = self._placed(picture)
        values: npt.NDArray[Any] = np.asarray(placed, np.float32) * np.float32(self.factor)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.blue_first:
            values = values[:, :, ::-1]
        if not self.channels_last:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, np.float32), frame

    def _placed(self, picture: Image.Image) -> tuple[Image.Image, Frame]:
        width, height = picture.size
        filter_ = Image.Resampling(self.resample)
        if self.letterbox:
            scale = min(self.width / width, self.height / height)
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
            left, top = (self.width - inner[0]) // 2, (self.height - inner[1]) // 2
            ground = Image.new("RGB", (self.width, self.height), GREY)
            ground.paste(picture.resize(inner, filter_), (left, top))
            return ground, Frame(width, height, inner[0] / width, inner[1] / height, left, top)
        if self.shortest_edge:
            # the part that is kept, scaled in one step: a panorama is never blown up to be cut down again
            scale = self.shortest_edge / min(width, height)
            kept = (min(width, self.width / scale), min(height, self.height / scale))
            edge, above = (width - kept[0]) / 2, (height - kept[1]) / 2
            box = (edge, above, edge + kept[0], above + kept[1])
            cut = picture.resize((self.width, self.height), filter_, box)
            scale_x, scale_y = self.width / kept[0], self.height / kept[1]
            return cut, Frame(width, height, scale_x, scale_y, -edge * scale_x, -above * scale_y)
        scaled = picture.resize((self.width, self.height), filter_)
        return scaled, Frame(width, height, self.width / width, self.height / height)


def preprocessing_of(config: Mapping[str, Any], shape: Sequence[int], *, letterbox: bool) -> Preprocessing:
    """From preprocessor_config.json and the shape of the network's input, of which -1 is any.

    Without the file a network gets what most exports want: values from 0 to 1. Raises OctonodeError FORMAT_REFUSED.
    """
    if len(shape) != 4 or (shape[1] not in (3, -1) and shape[3] not in (3, -1)):
        raise OctonodeError(f"the graph takes {list(shape)}, which is no picture in colour", code="FORMAT_REFUSED")
    channels_last = shape[1] != 3 and shape[3] == 3
    fixed = shape[1:3] if channels_last else shape[2:4]
    height, width, shortest = _size(config)
    if fixed[0] > 0 and fixed[1] > 0:
        height, width = fixed
    if not (0 < width <= SIDE_MAX and 0 < height <= SIDE_MAX and 0 <= shortest <= SIDE_MAX):
        raise OctonodeError(f"the model wants pictures of {width} x {height} pixels", code="FORMAT_REFUSED")
    normalise = config.get("do_normalize", bool(config.get("image_mean"))) is True
    resample = config.get("resample", 2)
    return Preprocessing(
        width,
        height,
        shortest_edge=shortest,
        letterbox=bool(config.get("do_pad", letterbox)) if letterbox else False,
        resample=resample if resample in range(6) else 2,
        factor=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=_three(config.get("image_mean"), _MEAN) if normalise else (0.0, 0.0, 0.0),
        std=_three(config.get("image_std"), _STD) if normalise else (1.0, 1.0, 1.0),
        blue_first=config.get("do_flip_channel_order") is True,
        channels_last=channels_last,
    )


def _size(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(height, width, shortest edge) of what the network sees."""
    size, crop = config.get("size", SIDE_DEFAULT), config.get("crop_size")
    height, width = _sides(size)
    if config.get("do_center_crop") is not True:
        return height, width, 0
    shortest = min(height, width)
    if config.get("crop_pct") and isinstance(config["crop_pct"], (int, float)):
        return height, width, round(shortest / float(config["crop_pct"]))
    height, width = _sides(crop) if crop is not None else (height, width)
    return height, width, max(shortest, 1)


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        edge = size.get("shortest_edge", size.get("longest_edge", 0))
        size = (size.get("height", edge), size.get("width", edge))
    elif not isinstance(size, list):
        size = (size, size)
    if len(size) == 2 and all(isinstance(each, int) for each in size):
        return size[0], size[1]
    raise OctonodeError("preprocessor_config.json of the model says no size", code="FORMAT_REFUSED")


def _three(values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        values = [values] * 3
    if isinstance(values, list) and len(values) == 3 and all(isinstance(each, (int, float)) for each in values):
        return tuple(float(each) for each in values)
    return default
