"""ONNX files of detkit's: a detector's networks, and all that it takes to detect with them.

A file is what torch's exporter makes of one ExportPart, and behind it entries of metadata: what a program needs that
runs it without detkit (see `metadata`), then what detkit reads, all as JSON:
    detkit
        format   FORMAT
        config   of the checkpoint, as plain dicts
        classes  names, in the order of the labels
        part     the end of this file's name; parts: those of all files of the detector
        export   the same for all of them, and another for another detector
    sha256   of all bytes before this entry, and how many of them the value of `detkit` has
A file that another program has rewritten (onnxsim, onnxslim, a quantiser) is refused: nothing tells its change from
damage, and boxes of a network that is a little wrong look right. OpenVINO and ONNX Runtime fold and fuse as much when
they load a file, so that there is nothing to gain.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from detkit.config import Config
from detkit.errors import UserError
from detkit.experiment import to_plain
from detkit.models import Detector
from detkit.models.parts import ExportPart

FORMAT = "detkit onnx 1"
DIGITS = 10  # of the length
END = 2 + 2 + len("sha256") + 2 + 64 + 1 + DIGITS + 2  # bytes of the last entry, as protobuf writes it
SEALED = re.compile(rb'r.\n\x06sha256\x12."([0-9a-f]{64}) (\d{10})"', re.DOTALL)


@dataclass(frozen=True)
class ONNXFile:
    """A file that was read. content: its bytes; values: of its entry `detkit`."""

    path: Path
    content: bytes
    values: dict[str, Any]


def metadata(detector: Detector, part: ExportPart) -> dict[str, Any]:
    """Return what a program needs that runs a part without detkit: plain values by name."""
    return {
        "model": detector.config.name,
        "classes": detector.classes,
        "input": asdict(detector.input) | {"normalisation": "inside"},
        "inputs": {name: part_input.text for name, part_input in part.inputs.items()},
        "outputs": part.outputs,
        **part.facts,
    }


def seal_parts(
    networks: Mapping[str, bytes], detector: Detector, config: Config, parts: Mapping[str, ExportPart]
) -> dict[str, bytes]:
    """Return the content of a detector's files, by the ends of their names."""
    own = {
        "format": FORMAT,
        "config": to_plain(config),
        "classes": detector.classes,
        "parts": [*parts],
        "best_scores": None if detector.best_scores is None else detector.best_scores._asdict(),
        "export": sha256(b"".join(networks.values())).hexdigest(),
    }
    return {
        end: seal(networks[end], metadata(detector, part), {**own, "part": end, **part.run})
        for end, part in parts.items()
    }


def seal(network: bytes, values: Mapping[str, Any], own: Mapping[str, Any]) -> bytes:
    """Return a network in ONNX's form with its metadata behind it, see the top."""
    text = {key: json.dumps(value) for key, value in values.items()} | {"detkit": json.dumps(own)}
    content = network + _entries(text)  # which is the network, with them: so protobuf joins messages
    length = len(text["detkit"].encode())
    return content + _entries({"sha256": json.dumps(f"{sha256(content).hexdigest()} {length:0{DIGITS}}")})


def _entries(text: Mapping[str, str]) -> bytes:
    import onnx  # pyright: ignore[reportMissingImports]

    entries = onnx.ModelProto()
    onnx.helper.set_model_props(entries, dict(text))
    return entries.SerializeToString()


def read_file(path: Path) -> ONNXFile:
    """Read and verify a file; UserError, naming it, for a damaged one, another program's, or another detkit's."""
    try:
        return verify(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def verify(content: bytes, path: Path) -> ONNXFile:
    """Verify the content of a file, see `read_file`."""
    body, end = content[:-END], SEALED.fullmatch(content[-END:])
    if end is None:
        raise UserError(
            f"{path}: cut off, or not exported by this detkit: it lacks the metadata `detkit` (format, config, "
            "classes) and `sha256` at its end; detkit export CHECKPOINT --onnx FILE.onnx writes them"
        )
    if sha256(body).hexdigest().encode() != end[1]:
        raise UserError(
            f"{path}: damaged, or changed by another program, as onnxsim: its checksum is of other bytes; export it "
            "again, and run it as it is: what runs it simplifies it by itself"
        )
    values = json.loads(body[len(body) - int(end[2]) :])
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {values.get('format')!r}, this detkit reads {FORMAT!r} alone; export the checkpoint "
            "again, or use the detkit that wrote it"
        )
    return ONNXFile(path, content, values)


def read_files(path: Path) -> dict[str, ONNXFile]:
    """Read all files of a detector, by the ends of their names.

    path: any of them, or of several the name that `--onnx` gave them in common.
    """
    first = read_file(path if path.exists() else _one_of(path))
    stem = first.path.stem.removesuffix(first.values["part"])
    files: dict[str, ONNXFile] = {}
    for end in first.values["parts"]:
        other = path.with_name(f"{stem}{end}.onnx")
        if not other.exists():
            raise UserError(f"{first.path}: its detector has a part that is not there: {other}")
        files[end] = first if end == first.values["part"] else read_file(other)
        if (files[end].values["export"], files[end].values["part"]) != (first.values["export"], end):
            raise UserError(f"{first.path} and {other} are not parts of one export; export both again")
    return files


def _one_of(path: Path) -> Path:
    near = path.parent.iterdir() if path.parent.is_dir() else ()
    part = re.compile(rf"{re.escape(path.stem)}-[a-z]+\.onnx")
    parts = sorted(file for file in near if part.fullmatch(file.name))
    if not parts:
        raise UserError(f"no file {path}")
    return parts[0]
