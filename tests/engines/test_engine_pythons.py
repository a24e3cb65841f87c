"""An engine in an environment of its own: `engines.pythons` names the interpreter that its workers are started with."""

from __future__ import annotations

import site
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from octonode.config import EnginesConfig
from octonode.errors import ConfigError, OctonodeError

pytestmark = pytest.mark.process
ROOT = "bafy-test-root"


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another environment that has all of ours, by a path file."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False)
    packages = next(home.glob("lib/python*/site-packages"))
    ours = [sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[2])]
    (packages / "ours.pth").write_text("\n".join(ours) + "\n")
    assert site.getsitepackages()[0] != str(packages)
    return home / "bin" / "python"


async def test_the_named_engine_runs_there_and_others_do_not(scripted, supervise, ask, generate, other_python):
    for pythons, expected in (
        ((f"scripted={other_python}",), str(other_python)),
        ((f"llama={other_python}",), sys.executable),
    ):
        async with supervise(scripted(), settings=EnginesConfig(pythons=pythons)) as supervisor:
            engine = await supervisor.wait_ready(ROOT)
            status = supervisor.status()[0]
            command = Path(f"/proc/{status.pid}/cmdline").read_bytes().split(b"\0")
            assert command[0].decode() == expected
            assert "seccomp" in status.sandbox, "the same walls there"
            assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


@pytest.mark.parametrize(
    ("entry", "why"), [("scripted=/nowhere/bin/python", "cannot be started"), ("nonsense", "is not ENGINE=PATH")]
)
async def test_a_bad_entry_is_an_error_of_that_model_and_not_of_the_daemon(scripted, supervise, entry, why):
    async with supervise(scripted(), settings=EnginesConfig(pythons=(entry,))) as supervisor:
        with pytest.raises((ConfigError, OctonodeError), match=why):
            await supervisor.wait_ready(ROOT)
        assert supervisor.status()[0].state == "quarantined"
