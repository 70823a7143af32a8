"""The configs that come with detkit, by name: `custom/ssd_mobilenet_v2` is configs/custom/ssd_mobilenet_v2.yaml.

They lie in `configs` of a checkout, and in the package where that was installed; a name is found from any folder.
"""

from pathlib import Path

from detkit.errors import UserError, did_you_mean

SUFFIXES = (".yaml", ".yml")
_PLACES = (Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs")
FOLDER = next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def known_configs() -> dict[str, Path]:
    """Return the file of each name, sorted."""
    return {_name(path): path for path in sorted(FOLDER.rglob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """Return the file of a config: the one at this path, else detkit's own of this name, with or without `configs/`
    before and `.yaml` behind it. UserError names the nearest where there is neither."""
    path = Path(name)
    known = known_configs()
    if path.is_file():
        return path
    if (own := _key(path)) in known:
        return known[own]
    beside = [str(p) for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
    hint = did_you_mean(str(path), beside) if beside and path.suffix in SUFFIXES else did_you_mean(own, known)
    raise UserError(f"no config {path}{hint if 'did you mean' in hint else '; detkit configs lists those of detkit'}")


def find_folder(name: str | Path) -> Path:
    """Return a folder: the one at this path, else detkit's own of configs (`shapes`), else the path as it is."""
    own = FOLDER / _key(Path(name))
    return own if not Path(name).exists() and own.is_dir() else Path(name)


def _key(path: Path) -> str:
    """The name that a path may be meant as."""
    path = path.with_suffix("") if path.suffix in SUFFIXES else path
    return path.as_posix().removeprefix("configs/")


def _name(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()
