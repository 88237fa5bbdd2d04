"""The steps of a turn: a pass over prompts that join, one more token for all that run, and what to do if one fails.

A failure is given to the smallest circle that it can concern: a pass to its group, a decoding step to the rows that
run. When memory ends there is a way out: what can be had again is given back; then every request of a group is tried
alone, and of those that run the longest give way until the others can go on.
"""

import logging
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from serving.batch import Batch
from serving.errors import NonFiniteLogits, ServingError, StepFailed
from serving.generation import FinishReason
from serving.joining import Joining
from serving.memory import out_of_memory
from serving.pace import Pace
from serving.prefill import Prefill
from serving.row import Row
from serving.waiting import Limits

log = logging.getLogger(__name__)

End = FinishReason | ServingError


class Steps:
    """`next_rows` takes the next group out of the queue, with all its members; `end` tells a request its end."""

    def __init__(
        self,
        batch: Batch,
        joining: Joining,
        limits: Limits,
        next_rows: Callable[[], list[Row]],
        end: Callable[[Row, End], None],
    ) -> None:
        self.tokens = Pace()
        self._batch, self._joining, self._limits = batch, joining, limits
        self._next_rows, self._end = next_rows, end

    def join(self) -> None:
        """One pass over prompts; those that are through get their first token."""
        prefill = self._joining.next(self._next_rows)
        if prefill is None:
            return
        failure, memory, logits = None, False, None
        try:
            logits = self._batch.advance(prefill, self._limits.pass_tokens(running=bool(self._batch.rows)))
        except Exception as error:  # the group's failure, not that of the rows that run
            log.exception("A pass over prompts failed")
            failure, memory = failed("prefill", error), out_of_memory(error)
        if failure is not None:
            if memory:
                self._batch.spare()
            for row in self._joining.failed(prefill, memory=memory):
                self._end(row, failure)
            return
        self._joining.passed(prefill, through=logits is not None)
        if logits is not None:
            self._admit(prefill, self._choose(prefill.rows, logits))

    def _admit(self, prefill: Prefill, ends: list[End | None]) -> None:
        """Let those go on that have not ended with their first token."""
        rows = prefill.rows
        staying = [row for row, end in zip(rows, ends, strict=True) if end is None]
        leaving = [row for row, end in zip(rows, ends, strict=True) if isinstance(end, str)]
        try:
            self._batch.admit(prefill, staying, leaving)
        except Exception as error:
            log.exception("Rows could not be taken into the batch")
            failure = failed("prefill", error)
            ends = [failure if end is None else end for end in ends]
        self._end_all(rows, ends)

    def advance(self) -> None:
        """One more token for every running row."""
        logits = self._decode()
        if logits is None:
            return
        rows = list(self._batch.rows)
        ends = self._choose(rows, logits)
        for at in reversed(range(len(rows))):
            if ends[at] is not None:
                self._batch.drop(at, sound=isinstance(ends[at], str))
        self._end_all(rows, ends)

    def _decode(self) -> Tensor | None:
        """Logits of all rows. When memory ends, what can be had again is given back; if that is not enough, the
        longest rows give way until the others can go on."""
        spared = False
        while self._batch.rows:
            try:
                return self._batch.decode()
            except Exception as error:
                log.exception("A decoding step failed")
                failure, memory = failed("decode", error), out_of_memory(error)
            # The error is gone by now, and with its traceback the tensors of the failed step.
            if not memory:
                for row in self._batch.clear():
                    self._end(row, failure)
            elif not spared:
                self._batch.spare()
                spared = True
            else:
                members = self._batch.rows[self._batch.longest()].lead.members
                over = [at for at, row in enumerate(self._batch.rows) if row in members]
                for row in [self._batch.drop(at, sound=False) for at in reversed(over)]:
                    self._end(row, failure)
        return None

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> list[End | None]:
        """Give every request its next token from its rows of logits [rows, vocabulary]; how each row ends, or None."""
        self.tokens.add(sum(row.lead is row for row in rows))
        peaks, best = (found.tolist() for found in logits.max(dim=-1))
        place = {row: at for at, row in enumerate(rows)}
        ends: list[End | None] = [None] * len(rows)
        for lead in (row for row in rows if row.lead is row):
            places = [place[member] for member in lead.members]
            # The maximum is NaN as soon as one logit is.
            broken = next((rows[at] for at in places if not math.isfinite(peaks[at])), None)
            end = NonFiniteLogits(broken.adapters) if broken else self._step(lead, logits, places, best[places[0]])
            for at in places:
                ends[at] = end
        return ends

    def _step(self, lead: Row, logits: Tensor, places: Sequence[int], best: int) -> End | None:
        """One request's next token; its sampling or decoding must not take the others with it."""
        try:
            return lead.step([logits[at] for at in places], best)
        except ServingError as error:
            return error
        except Exception as error:
            log.exception("Choosing a token failed")
            return failed("sampling", error)

    def _end_all(self, rows: Sequence[Row], ends: Sequence[End | None]) -> None:
        for row, end in zip(rows, ends, strict=True):
            if end is not None:
                self._end(row, end)


def failed(step: str, error: BaseException) -> StepFailed:
    """What a request is told of a failure."""
    return StepFailed(step, f"{type(error).__name__}: {error}")
