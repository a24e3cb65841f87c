"""Golden vectors of the protocol pages: bytes that every implementation must make and take.

    python scripts/vectors.py            write protocols/vectors/*.json
    python scripts/vectors.py --check    exit 1 when a file differs from what the code makes

Keys, ids and times are fixed, and Ed25519 signatures are deterministic: the same code makes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vectors_agent
import vectors_bitswap
import vectors_documents
import vectors_hello
import vectors_models
import vectors_names
import vectors_needs
import vectors_pins
import vectors_skills
import vectors_webhooks

FOLDER = Path(__file__).resolve().parent.parent / "protocols" / "vectors"

BUILDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "agent": vectors_agent.agent,
    "framing": vectors_agent.framing,
    "transcript": vectors_documents.transcript,
    "announcement": vectors_documents.announcement,
    "receipt": vectors_documents.receipt,
    "hello": vectors_hello.hello,
    "fanout": vectors_hello.fanout,
    "join": vectors_hello.join,
    "bitswap": vectors_bitswap.bitswap,
    "cid": vectors_models.cid,
    "manifest": vectors_models.manifest,
    "name-record": vectors_names.names,
    "needs": vectors_needs.needs,
    "pin": vectors_pins.pin,
    "webhook": vectors_webhooks.webhook,
    "skills": vectors_skills.skills,
}


def text_of(name: str) -> str:
    """The content of `protocols/vectors/<name>.json`."""
    return json.dumps(BUILDERS[name](), indent=1, ensure_ascii=True) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is not up to date")
    check = parser.parse_args().check
    stale = []
    for name in BUILDERS:
        path, text = FOLDER / f"{name}.json", text_of(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale)}" if stale else "all vectors are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
