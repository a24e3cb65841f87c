"""What an asker checks while an answer arrives: every checkpoint, and the receipt at its end, against what it saw."""

from __future__ import annotations

from octonode.errors import VerificationFailed
from octonode.ids import PeerId, TaskId
from octonode.protocol.messages import TaskResponse
from octonode.protocol.receipt import Receipt, check_receipt, verify_receipt
from octonode.protocol.transcript import Transcript, verify_checkpoint
from octonode.tasks.asking import Ask, Candidate
from octonode.tasks.orders import parameters_of
from octonode.tasks.pricing import total_micro_octo


class Verification:
    """The verdict on one answer of one provider. A failed check stays; it stops nothing."""

    def __init__(
        self,
        ask: Ask,
        *,
        asker: PeerId,
        provider: PeerId,
        task: TaskId,
        request_sha256: bytes,
        offer: Candidate | None = None,
    ) -> None:
        """`offer` holds the price that the provider has announced."""
        self.reason = ""
        """The first thing that did not hold; empty so far."""
        self.attested = 0
        """Pieces under the last good checkpoint."""
        self._ask = ask
        self._offer = offer
        self._asker = asker
        self._provider = provider
        self._task = task
        self._request = request_sha256
        self._transcript = Transcript(request_sha256)

    def pieces(self, pieces: tuple[str, ...]) -> None:
        self._transcript.extend(pieces)

    def checkpoint(self, data: bytes) -> None:
        """One that came with a frame whose pieces are counted already."""
        try:
            checkpoint = verify_checkpoint(data)
        except VerificationFailed as error:
            self._fault(error.message)
            return
        seen = (self._request, self._provider, self._transcript.count, self._transcript.digest)
        if (checkpoint.request, checkpoint.provider, checkpoint.pieces, checkpoint.digest) != seen:
            self._fault("checkpoint: it does not stand for what was received")
        else:
            self.attested = checkpoint.pieces

    def response(self, response: TaskResponse) -> None:
        """The terminal frame with its receipt."""
        if not response.receipt:
            self._fault("the provider sent no receipt")
            return
        if response.transcript != self._transcript.digest:
            self._fault("transcript: its hash in the response is not that of what was received")
        if self._ask.work is None and response.tokens_out > self._ask.max_tokens:
            self._fault(f"tokens_out is {response.tokens_out}, and {self._ask.max_tokens} were asked for at most")
        parameters = parameters_of(self._ask)
        seed = parameters.pop("seed", None)
        expected = {"seed": seed} if seed is not None else {}
        try:
            receipt = verify_receipt(response.receipt)
            check_receipt(
                receipt,
                request=self._request,
                task=self._task,
                asker=self._asker,
                provider=self._provider,
                model_root=self._ask.model_root,
                pieces=self._transcript.count,
                transcript=self._transcript.digest,
                tokens_in=response.tokens_in,
                tokens_out=response.tokens_out,
                finish_reason=response.finish_reason,
                privacy=self._ask.privacy,
                parameters=parameters,
                **expected,
            )
            self._check_price(receipt)
        except VerificationFailed as error:
            self._fault(error.message)

    def _check_price(self, receipt: Receipt) -> None:
        """The total follows from the rates, and no rate is above the announced one."""
        price, times, offer = receipt.price, receipt.times, self._offer
        rates = (price.rate_in_micro_octo, price.rate_out_micro_octo)
        work_ms = times.finished_at_ms - times.started_at_ms if times.started_at_ms else 0
        total = total_micro_octo(price.basis, rates, (receipt.tokens_in, receipt.tokens_out), work_ms)
        if price.total_micro_octo != total:
            self._fault(f"price: the total is {price.total_micro_octo} µOCTO, and its rates make {total}")
        if offer is None or not any(rates):
            return
        announced = (offer.price_in_micro_octo, offer.price_out_micro_octo)
        if price.basis != offer.price_basis or rates[0] > announced[0] or rates[1] > announced[1]:
            asked_for = f"{announced} by {offer.price_basis}"
            self._fault(f"price: its rates are {rates} µOCTO by {price.basis}, and {asked_for} were announced")

    def _fault(self, reason: str) -> None:
        self.reason = self.reason or reason
