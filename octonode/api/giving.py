"""What of an answer may go out at once, and what waits until it is known to be what was wanted."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from octonode.api.schema.chat import Wanted
from octonode.api.schema.structured import ANSWER_CHARACTERS_MAX, NotValid, parse_answer
from octonode.api.schema.tools import Call, find_call, may_become_call, take_call

LOOKS_CHARACTERS = 64
"""An answer that still looks like a call after so many will not look otherwise later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer ended."""

    reason: str
    """Its `finish_reason`."""
    text: str = ""
    """What had been held and goes out now."""
    call: Call | None = None


class Giving:
    """One answer on its way out. JSON and forced calls are held whole; where a function may be called, the answer is
    held as long as it looks like a call; everything else passes."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        tools = wanted.tools
        self._must = wanted.json or (tools is not None and tools.forced)
        self._may = tools is not None and bool(tools.offered)
        self._holds = self._must or self._may
        self._held: list[str] = []
        self._held_characters = 0

    def take(self, said: str) -> str:
        """What goes out now; empty while it is held. Raises NotValid for an answer too long to be checked."""
        if not self._holds:
            return said
        self._held.append(said)
        self._held_characters += len(said)
        too_long = self._held_characters > ANSWER_CHARACTERS_MAX
        if self._must:
            if too_long:
                raise NotValid(f"the answer has over {ANSWER_CHARACTERS_MAX} characters, too many to be checked")
            return ""
        decided = self._held_characters - len(said) > LOOKS_CHARACTERS
        if not too_long and (decided or may_become_call("".join(self._held))):
            return ""
        self._holds = False
        return self._release()

    async def end(self, reason: str) -> Outcome:
        """Raises NotValid when it is not what was wanted. An answer that was cut (`length`) is given as it is."""
        said = self._release()
        tools = self._wanted.tools
        if not self._holds or reason != "stop":
            return Outcome(reason, said)
        if self._wanted.json:
            await trio.to_thread.run_sync(parse_answer, said, self._wanted.schema)
            return Outcome(reason, said)
        assert tools is not None
        find = take_call if tools.forced else find_call
        call = await trio.to_thread.run_sync(find, said, tools)
        return Outcome(reason, said) if call is None else Outcome("tool_calls", call=call)

    def _release(self) -> str:
        said, self._held = "".join(self._held), []
        return said
