"""Where a run stands: what a checkpoint holds beside weights and optimizer."""

import hashlib
import math
from dataclasses import dataclass


@dataclass
class Progress:
    """A run after `step` updates."""

    step: int = 0
    data_hash: str = ""
    """Hex digest chained over the steps' batch digests: equal for equal data, whatever the processes."""
    best_loss: float = math.inf
    best_step: int = -1
    """Step of the best evaluation; -1 before the first. Its checkpoint is written before the file `best` names it."""
    elapsed_s: float = 0.0
    """Seconds of training, evaluation and checkpoints left out."""
    skipped_steps: int = 0
    """Steps without an update because loss or gradient was not finite."""

    evaluation_due: bool = False
    """A stop signal came in the evaluation of this step: a resume begins with it."""

    def advance(self, batch_digest: int, seconds: float) -> None:
        """Count one more step that was fed a global batch of this digest."""
        self.step += 1
        self.elapsed_s += seconds
        self.data_hash = hashlib.blake2b(f"{self.data_hash} {batch_digest}".encode(), digest_size=16).hexdigest()

    def note_best(self, loss: float) -> bool:
        """Whether `loss` is the best evaluation so far; it is remembered."""
        if is_best := loss < self.best_loss:  # False for NaN
            self.best_loss, self.best_step = loss, self.step
        return is_best
