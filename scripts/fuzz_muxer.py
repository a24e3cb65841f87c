"""Fuzz the muxer and the negotiation: `python -m scripts.fuzz_muxer --minutes 60 --seed 1`.

Inputs of the corpus are mutated (bits, splices, whole steps, fields of headers) and run; one that reaches something new
is mutated in turn, and with `--keep` those that together reach most are written to the corpus, which stays small. An
input that breaks a promise is saved under `--crashes` and reproduced by `python -m scripts.fuzz_muxer --replay FILE`.
See `scripts.fuzz_targets` for what inputs are.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import sys
import time
import traceback
from pathlib import Path

from scripts.fuzz_targets import SHAPE, SHAPES, STEPS, STEPS_MAX, Feature, run, steps_of

CORPUS = Path("tests/network/muxing/corpus")
CRASHES = Path("build/fuzz-crashes")
INPUT_BYTES_MAX = 4096
CRASHES_MAX = 20
CORPUS_FILES_MAX = 56
CORPUS_BYTES_MAX = 48 * 1024
REPORT_SECONDS = 60.0
NUMBERS = {
    "B": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 127, 128, 255),
    "H": (0, 1, 2, 3, 12, 24, 25, 100, 255, 256, 1024, 4096, 8192, 16383, 16384, 16385, 65519, 65535),
    "I": (0, 1, 2, 255, 65536, 2**18 - 1, 2**18, 2**18 + 1, 2**31, 2**32 - 1),
}
TEXTS = (b"\x13/multistream/1.0.0\n", b"\x0b/test/echo\n", b"\x08/nobody\n", b"\x03na\n", b"\x03ls\n", b"\x80", b"\n")
SEEDS = (
    bytes([8]) + TEXTS[0] + TEXTS[2] + TEXTS[1],
    bytes([9]) + TEXTS[0] + TEXTS[3] + TEXTS[1],
    bytes([4]) + b"D\x01\x01\x00\x10W\x0aM\xff\xefS\x00\x00\x20F\x00D\x01\x04\x00\x01T\x00\xff\xffM\xff\xef",
    bytes([5]) + b"OS\x00\x00\x02M\xff\xefU\x01\x02\x00\x00\x10\x00F\x00M\xff\xefU\x01\x08\x00\x00\x00\x00",
    bytes([2]) + b"D\x01\x01\x40\x00D\x03\x01\x40\x00R\x00IM\xff\xefGC\x01\x00\x00\x00\x00\x00L",
    bytes([2]) + 30 * b"C\x00\x01\x00\x00\x00\x07",
)


class Fuzzer:
    """Keeps the inputs that reached something new, and makes the next from them."""

    def __init__(self, seed: int, inputs: list[bytes]) -> None:
        self.random = random.Random(seed)
        self.inputs: list[bytes] = []
        self.features: set[Feature] = set()
        self.crashes: dict[str, bytes] = {}
        """By where the finding was raised."""
        self.executions = 0
        for data in [*SEEDS, *inputs]:
            self.execute(data)
            self.inputs.append(data)

    def execute(self, data: bytes) -> None:
        self.executions += 1
        try:
            features = run(data)
        except Exception as finding:
            place = "".join(traceback.format_exception(finding)[-2:])
            self.crashes.setdefault(place, data)
            return
        if not features <= self.features:
            self.features |= features
            self.inputs.append(data)

    def next_input(self) -> bytes:
        choose = self.random
        data = bytearray(min(choose.choices(self.inputs, k=choose.choice((1, 3))), key=len))  # short ones run faster
        for _ in range(choose.choice((1, 1, 1, 2, 3, 5, 9))):
            mutation = choose.choice((self.flip, self.splice, self.cut, self.settings, *3 * (self.add, self.change)))
            data = mutation(data)
        return bytes(data[:INPUT_BYTES_MAX])

    def flip(self, data: bytearray) -> bytearray:
        at = self.random.randrange(len(data))
        data[at] ^= 1 << self.random.randrange(8)
        return data

    def splice(self, data: bytearray) -> bytearray:
        other = self.random.choice(self.inputs)
        return data[: self.random.randrange(1, len(data) + 1)] + other[self.random.randrange(len(other)) :]

    def cut(self, data: bytearray) -> bytearray:
        first, last = sorted(self.random.randrange(1, len(data) + 1) for _ in range(2))
        return data[:first] + data[last:]

    def settings(self, data: bytearray) -> bytearray:
        data[0] = self.random.randrange(16)
        return data

    def add(self, data: bytearray) -> bytearray:
        """A step, or a message of the negotiation, at a place where one may stand; sometimes many."""
        choose = self.random
        if data[0] & 8:
            at = choose.randrange(1, len(data) + 1)
            return data[:at] + choose.choice(TEXTS) + data[at:]
        added = b"".join(self.new_step() for _ in range(choose.choice((1, 1, 1, 2, 4))))
        ends = [1]
        for _, step_size in self.places(data):
            ends.append(ends[-1] + step_size)
        at = choose.choice(ends)
        return data[:at] + added * choose.choice((1, 1, 1, 1, 2, 30)) + data[at:]

    def change(self, data: bytearray) -> bytearray:
        """One number of one step."""
        places = self.places(data)
        if data[0] & 8 or not places:
            return self.flip(data)
        start, _ = self.random.choice(places)
        shape = STEPS[chr(data[start])]
        if not shape:
            return data
        place = self.random.randrange(len(shape))
        value = self.random.choice(NUMBERS[shape[place]])
        struct.pack_into("!" + shape[place], data, start + 1 + struct.calcsize("!" + shape[:place]), value)
        return data

    @staticmethod
    def places(data: bytearray) -> list[tuple[int, int]]:
        """(start, size) of every step, where they follow each other without bytes between."""
        found, at = [], 1
        for letter, _, raw in steps_of(bytes(data[1:])):
            if at >= len(data) or chr(data[at]) != letter:
                break
            size = 1 + SHAPES[ord(letter)].size + len(raw)
            found.append((at, size))
            at += size
        return found[:STEPS_MAX]

    def new_step(self) -> bytes:
        letter = self.random.choice("PDDDDUUUCOOAASSTTFFRWWMMMMGIL")
        numbers = b"".join(
            struct.pack("!" + each, self.random.choice(NUMBERS[each])) for each in STEPS[letter] if letter != "P"
        )
        if letter == "P":
            raw = self.random.randbytes(self.random.choice((1, 11, 12, 13, 40)))
            numbers = struct.pack("!H", len(raw)) + raw
        return letter.encode() + numbers


def load(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []


def save(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def distil(kept: list[bytes], inputs: list[bytes]) -> list[bytes]:
    """`kept`, and of the inputs those that add most to it; small ones where they add the same."""
    chosen, reached = list(kept), set[Feature]().union(*map(run, kept))
    candidates = [({each for each in run(data) if each[0] != SHAPE}, data) for data in set(inputs) - set(kept)]
    while candidates and len(chosen) < CORPUS_FILES_MAX:
        features, data = min(candidates, key=lambda each: (-len(each[0] - reached), len(each[1]), each[1]))
        if features <= reached:
            break
        candidates.remove((features, data))
        if sum(map(len, chosen)) + len(data) <= CORPUS_BYTES_MAX:
            chosen.append(data)
            reached |= features
    return chosen


def campaign(fuzzer: Fuzzer, seconds: float, crashes: Path) -> None:
    started = reported = time.monotonic()
    saved = 0
    while (now := time.monotonic()) - started < seconds and len(fuzzer.crashes) < CRASHES_MAX:
        for _ in range(100):
            fuzzer.execute(fuzzer.next_input())
        for place, data in list(fuzzer.crashes.items())[saved:]:
            print(f"FINDING in {save(crashes, data)}\n{place}", flush=True)
            saved += 1
        if now - reported > REPORT_SECONDS:
            reported = now
            print(summary(fuzzer, now - started), flush=True)
    print(summary(fuzzer, time.monotonic() - started), flush=True)


def summary(fuzzer: Fuzzer, seconds: float) -> str:
    return (
        f"{seconds:7.0f} s  {fuzzer.executions:10d} executions  {fuzzer.executions / max(seconds, 0.1):6.0f}/s  "
        f"{len(fuzzer.features):5d} features  {len(fuzzer.inputs):5d} inputs  {len(fuzzer.crashes):3d} findings"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--crashes", type=Path, default=CRASHES)
    parser.add_argument("--keep", action="store_true", help="write inputs that reach something new to the corpus")
    parser.add_argument("--replay", type=Path, help="run one file and show what it raises")
    arguments = parser.parse_args()
    if arguments.replay:
        print(*sorted(map(str, run(arguments.replay.read_bytes()))), sep="\n")
        return 0
    print(f"seed {arguments.seed}, corpus {arguments.corpus}", flush=True)
    corpus = load(arguments.corpus)
    fuzzer = Fuzzer(arguments.seed, corpus)
    campaign(fuzzer, 60 * arguments.minutes, arguments.crashes)
    if arguments.keep:
        for data in distil(corpus, fuzzer.inputs):
            save(arguments.corpus, data)
    return 1 if fuzzer.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
