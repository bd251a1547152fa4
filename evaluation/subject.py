"""What is evaluated: a model, its tokenizer and where it comes from, by the name that a user types."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from config.gpt2 import config as gpt2
from config.schema import Config
from data import tokenizer
from data.shards import file_sha256
from data.tokenizer import Tokenizer
from model import GPT
from pretrained.folder import locate
from pretrained.tokenizers import recognize
from runtime import checkpoint

_NAMED = 6  # folders, where the one that was typed is not there
PADDING = 127  # the most that padding to a multiple of 128 adds to a vocabulary
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Subject:
    """A model on the CPU in evaluation mode."""

    name: str
    """As it was typed."""
    model: GPT
    config: Config
    """The run's; of another folder GPT-2's preset with the model's own fields, in float32."""
    places: tuple[Path, ...]
    """Where its tokenizer.json may lie."""
    weights_sha256: str
    """Of its model.safetensors; empty where the weights lie in another file."""
    checkpoint: Path | None = None
    """The folder of a run's checkpoint; None for another folder."""

    @property
    def step(self) -> int | None:
        """Of the run's checkpoint."""
        return checkpoint.step_of(self.checkpoint) if self.checkpoint else None

    @property
    def label(self) -> str:
        """The name, with the step of a run."""
        return self.name if self.step is None else f"{self.name} step {self.step}"

    def words(self, name: str = "") -> Tokenizer:
        """The tokenizer, or the one called `name`. Raises ValueError where it is not there, or has other ids than the model.

        A model may have a few ids more than its tokenizer (nanoGPT pads to 50304): those are no text.
        """
        words = tokenizer.load(name or self.config.tokenizer, *self.places)
        if not 0 <= self.model.config.vocab_size - words.vocab_size <= PADDING:
            raise ValueError(
                f"tokenizer {words.name!r} has {words.vocab_size} ids, the model {self.model.config.vocab_size}; "
                f"name the right one: --tokenizer gpt2, bytes or PATH/{tokenizer.FILE}"
            )
        return words


def load(run: str, which: str = "best", tokenizer_name: str = "") -> Subject:
    """A run's folder, a checkpoint's, a GPT-2 folder (export.py's too) or a hub name. Raises ValueError.

    `which` (best, last or a step) means a run's checkpoint; `tokenizer_name` is for folders whose own is not recognised.
    """
    folder = Path(run)
    if any((folder / name).exists() for name in ("checkpoints", "state.pt", "run.json")):
        found = checkpoint.find(folder, which)
        gpt, config = checkpoint.load_model(found)
        places = (found, folder, folder.parent.parent, Path(config.data_dir))  # a checkpoint lies two folders below its run
        return Subject(run, gpt, config, places, file_sha256(found / _WEIGHTS), found)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{run!r} is neither a run nor a GPT-2 folder; give one such as runs/tiny_hermite (make train makes it)"
        )
    if not folder.is_dir() and (folder.is_absolute() or folder.parts[:1] == ("runs",) or _is_beside_others(folder)):
        there = sorted(path.name for path in folder.parent.glob("*/") if not path.name.startswith("."))[:_NAMED]
        hint = f"in {folder.parent} there are {', '.join(there)}" if there else "python train.py CONFIG.py makes runs"
        raise ValueError(f"there is no folder {run!r}; {hint}")
    folder = locate(run)
    gpt = GPT.from_pretrained(folder).eval()
    name = tokenizer_name or recognize(folder, gpt.config.vocab_size)
    config = dataclasses.replace(
        gpt2,
        **dataclasses.asdict(gpt.config),
        tokenizer=tokenizer.recorded(name),
        data_dir=str(folder),
        out_dir=str(folder),
        dtype="float32",
        eval_tokens=0,
    )
    return Subject(
        run, gpt, config, (Path(name).parent, folder), file_sha256(folder / _WEIGHTS) if (folder / _WEIGHTS).is_file() else ""
    )


def _is_beside_others(folder: Path) -> bool:
    """Whether a path that is not there is in a folder that is: a name of the hub is in none."""
    return folder.parent != Path() and folder.parent.is_dir()
