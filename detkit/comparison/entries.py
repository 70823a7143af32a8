"""What is compared: configs to train and finished runs, all of one data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit import extensions
from detkit.checkpoints import checkpoint
from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.data.opening import open_dataset
from detkit.engine.length import in_steps
from detkit.engine.resume import difference
from detkit.errors import UserError
from detkit.experiment import from_plain, load_config, to_plain
from detkit.known_configs import find_config, find_folder
from detkit.models import MODELS

# by the year of the papers; others come after them, by name
PAPERS = (
    "rcnn",
    "sppnet",
    "fast_rcnn",
    "faster_rcnn",
    "yolov1",
    "ssd",
    "rfcn",
    "yolov2",
    "mask_rcnn",
    "retinanet",
    "yolov3",
)
RUN_FILES = ("last.pt", "best.pt", "config.yaml", "metrics.json")  # each tells a folder of a run


@dataclass(frozen=True)
class Entry:
    """One detector to compare.

    name: of its config or of its run's folder. config: with the overrides. folder: of its run, which a `source`, the
    config file, is trained into; None where the run was named.
    """

    name: str
    config: Config
    folder: Path
    source: Path | None = None

    @property
    def label(self) -> str:
        """The name, with the detector's where that says more."""
        model = self.config.model.name
        return self.name if model == self.name else f"{self.name} ({model})"

    @property
    def takes_proposals(self) -> bool:
        """Whether the detector classifies stored regions."""
        return MODELS.get(self.config.model.name).takes_proposals

    @property
    def best(self) -> Path:
        """The checkpoint that is compared: the best on val."""
        return self.folder / "best.pt"

    @property
    def iterations(self) -> int:
        """Of its training."""
        recipe = self.config.train
        return recipe.iterations or in_steps(recipe, len(open_dataset(self.config.data, "train"))).iterations

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.best.is_file() and (self.folder / "metrics.json").is_file()


def find_entries(names: Iterable[str], overrides: list[str], out: Path) -> list[Entry]:
    """Resolve configs, runs and folders of either, in the papers' order; configs have their runs in `out`.

    Raises UserError, in one line: a name that is neither, a run without a checkpoint, two of one name, a folder in
    `out` that another config was trained into.
    """
    paths = dict.fromkeys(path for name in names for path in _resolve(Path(name)))
    entries = [_run(path, overrides) if path.is_dir() else _config(path, overrides, out) for path in paths]
    by_name: dict[str, Entry] = {}
    for entry in entries:
        other = by_name.setdefault(entry.name, entry)
        if other is not entry:
            both = " and ".join(str(one.source or one.folder) for one in (other, entry))
            raise UserError(f"{both} have one name, {entry.name}; rename one, so that a table can tell them apart")
    return sorted(entries, key=_order)


def _order(entry: Entry) -> tuple[int, str]:
    model = entry.config.model.name
    return PAPERS.index(model) if model in PAPERS else len(PAPERS), entry.name


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def _resolve(path: Path) -> list[Path]:
    """Return config files and folders of runs."""
    path = find_folder(path)
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return [path]
        hint = f"; the folder of its run would be {path.parent}" if path.suffix == ".pt" else ""
        raise UserError(f"{path} is neither a .yaml config nor the folder of a run{hint}")
    if not path.is_dir():
        return [find_config(path)]
    if _is_run(path):
        return [path]
    found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) or sorted(
        folder for folder in path.iterdir() if folder.is_dir() and _is_run(folder)
    )
    if not found:
        raise UserError(f"{path} holds neither configs (*.yaml) nor folders of runs")
    return found


def _config(path: Path, overrides: list[str], out: Path) -> Entry:
    config, folder = load_config(path, overrides), out / path.stem
    trained = folder / "config.yaml"
    if trained.is_file():
        changed = difference(to_plain(config), to_plain(load_config(trained)))
        if changed:
            raise UserError(
                f"{path} is not what {trained} was trained by: {changed}; remove {folder}, or give another --out"
            )
    return Entry(path.stem, config, folder, path)


def _run(folder: Path, overrides: list[str]) -> Entry:
    best = folder / "best.pt"
    if not best.is_file():
        resume = f"; detkit train --resume {folder} goes on with it" if (folder / "last.pt").is_file() else ""
        raise UserError(f"{folder}: a run without a checkpoint best.pt{resume}")
    config = from_plain(checkpoint.load(best)["config"], str(best), overrides)
    config.imports = [*extensions.imported]  # what the checkpoint names is not run, see extensions.py
    return Entry(folder.resolve().name, config, folder)


def open_same(entries: Sequence[Entry]) -> DetectionDataset:
    """Open the test split that all are compared on, labelled as by the first of them.

    Raises UserError, naming two of them, where classes, images or metric are not the same.
    """
    first, *others = entries
    classes = _classes(first)
    for entry in others:  # before the images, which another's classes may not fit
        _check_same("classes", (first, sorted(classes)), (entry, sorted(_classes(entry))))
    metric = first.config.evaluate.metric
    dataset = open_dataset(first.config.data, "test", classes)
    for entry in others:
        other = open_dataset(entry.config.data, "test", classes)
        images = (first, _sources(dataset)), (entry, _sources(other))
        _check_same("images", *images, "; data.root=ROOT and data.test=[SPLIT] set both")
        metrics = (first, [metric]), (entry, [entry.config.evaluate.metric])
        _check_same("metrics", *metrics, f"; evaluate.metric={metric} sets both")
    return dataset


def _classes(entry: Entry) -> tuple[str, ...]:
    if entry.best.is_file():
        return tuple(checkpoint.load(entry.best)["classes"])
    return open_dataset(entry.config.data, "train").classes


def _sources(dataset: DetectionDataset) -> list[str]:
    sources = [f"{root.resolve()}/{split}" for root, split in dataset.sources]
    return [*sources, dataset.fingerprint()["ids"]] if dataset.listed else sources


def _check_same(what: str, one: tuple[Entry, list[str]], other: tuple[Entry, list[str]], hint: str = "") -> None:
    if one[1] != other[1]:
        values = (", ".join(names[:6]) + ", ..." * (len(names) > 6) for _, names in (one, other))
        raise UserError(
            f"{one[0].name} and {other[0].name} cannot be compared, their {what} are not the same: "
            f"{', and '.join(values)}{hint}"
        )
