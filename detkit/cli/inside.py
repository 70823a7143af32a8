"""detkit inside: what a network's layers have learned, and where it looks."""

import argparse
from pathlib import Path

from detkit.cli.arguments import whole
from detkit.errors import UserError
from detkit.files import write_file, write_image
from detkit.runtime.screen import say

DESCRIPTION = (
    "Look inside a backbone or a detector: its filters, what its units respond to and can learn, and where a class or "
    "a detection looks."
)
EPILOG = """examples:
  detkit inside voc image.jpg
  detkit inside runs/faster_rcnn-1 image.jpg --detection 2
  detkit inside squeezenet1_0 image.jpg --weights squeezenet1_0.pth --data data/voc07 --split trainval
  detkit inside alexnet image.jpg --weights imagenet --layer features.9 --unit 17

MODEL: voc, a checkpoint, or the folder of a run; its layers are those of its backbone. BACKBONE: one of `detkit
backbones`, with --weights; a file that has ImageNet's classifier gives that classifier.

With --data each unit's strongest patches of a data set are shown, and what the deconvnet projects of them. They are
kept in DIR/strongest.pt; the same command goes on there after Ctrl-C, and takes them from there when all is done.

DIR then holds inside.html, and its pictures as SECTION-NAME-PICTURE.png.

exit status: 0; 2 after an error; 130 after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|BACKBONE", help="voc, a checkpoint, a run's folder, or a backbone")
    parser.add_argument("image", nargs="+", help="image, folder or 'glob'")
    parser.add_argument("--weights", metavar="FILE", help="of a backbone: a file, or imagenet (default: untrained)")
    parser.add_argument("--layer", metavar="NAME", help="show this layer alone (default: some, first to last)")
    parser.add_argument("--unit", type=whole(0), metavar="N", help="of --layer, show this unit alone, from 0")
    parser.add_argument("--class", dest="of_class", metavar="NAME", help="of a classifier (default: its best)")
    parser.add_argument(
        "--detection", type=whole(1), default=1, metavar="K", help="of a detector, from 1, the best (default 1)"
    )
    parser.add_argument("--data", metavar="ROOT", type=Path, help="a data set, whose strongest patches are shown")
    parser.add_argument("--split", metavar="NAME", help="of the data set (default: what it has to train on)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("inside"), help="default %(default)s")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def run(arguments: argparse.Namespace) -> int:
    """Look, and write the page."""
    if arguments.unit is not None and arguments.layer is None:
        raise UserError(f"--unit {arguments.unit}: of which layer? name it with --layer")
    if arguments.split is not None and arguments.data is None:
        raise UserError(f"--split {arguments.split}: goes with --data")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: a file, not a folder")

    from detkit.data.formats import open_root, usual_split
    from detkit.data.image_file import decode_image
    from detkit.inference.sources import find_sources
    from detkit.inside import Wanted, draw_sections, inside_page, open_network, shown_layers, strongest
    from detkit.inside.library import captum
    from detkit.runtime.device import choose_device
    from detkit.runtime.progress import Progress

    sources = find_sources(arguments.image)
    paths = [source for source in sources if isinstance(source, Path)]
    if len(paths) < len(sources):
        raise UserError("inside takes images, and a video is among them; save one of its frames")
    captum()
    network = open_network(arguments.model, arguments.weights, choose_device(arguments.device))
    if arguments.layer is not None:
        network.check(arguments.layer, arguments.unit)
    if arguments.of_class is not None and (network.detector is not None or not network.classes):
        raise UserError(f"--class {arguments.of_class}: goes with a classifier; of a detector, give --detection")
    layers = shown_layers(network) if arguments.layer is None else [arguments.layer]
    images = [(path.name, decode_image(path)) for path in paths]
    dataset = best = None
    with Progress() as bars:
        if arguments.data is not None:
            splits = [arguments.split] if arguments.split else usual_split(arguments.data, "train")
            dataset = open_root(arguments.data, splits)
            best = strongest(network, dataset, layers, arguments.out / "strongest.pt", bars.update)
        wanted = Wanted(images, layers, arguments.unit, arguments.detection, arguments.of_class, dataset, best)
        sections = draw_sections(network, wanted, bars.update)
    weights = arguments.weights or ("its own weights" if network.detector is not None else "no weights: untrained")
    protocol = f"{arguments.model} ({network.input}), {weights}; {', '.join(name for name, _ in images)}"
    protocol += f"; strongest of the {len(dataset)} images of {dataset.name}" if dataset is not None else ""
    for number, section in enumerate(sections, 1):
        for place, panel in enumerate(section.panels, 1):
            write_image(arguments.out / f"{number}-{section.name}-{place}.png", panel.drawing)
    write_file(arguments.out / "inside.html", inside_page(sections, f"Inside {arguments.model}", protocol))
    say(protocol)
    for number, section in enumerate(sections, 1):
        say(f"{number} {section.title}: {section.text}")
    say(f"{arguments.out / 'inside.html'} and its pictures beside it")
    return 0
