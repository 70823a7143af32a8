"""Seeing inside a network: what its units respond to and can learn, and where a class or a detection looks.

network = open_network("squeezenet1_0", "squeezenet1_0.pth")
asked = class_score(network, image)  # or detection_scores(open_network("voc"), image)
heat, layer = grad_cam(network, asked)
"""

from detkit.inside.deconvnet import deconvnet
from detkit.inside.fields import Field, effective_field, receptive_fields
from detkit.inside.grad_cam import grad_cam
from detkit.inside.guided import guided_backpropagation
from detkit.inside.invariance import invariance
from detkit.inside.maximise import maximise
from detkit.inside.network import Network, of_detector, open_network
from detkit.inside.occlusion import occlusion
from detkit.inside.page import inside_page
from detkit.inside.saliency import saliency
from detkit.inside.scores import Asked, class_score, detection_scores
from detkit.inside.sections import Wanted, draw_sections, shown_layers
from detkit.inside.strongest import Best, strongest
from detkit.inside.untrained import similarity, untrained

__all__ = [
    "Asked",
    "Best",
    "Field",
    "Network",
    "Wanted",
    "class_score",
    "deconvnet",
    "detection_scores",
    "draw_sections",
    "effective_field",
    "grad_cam",
    "guided_backpropagation",
    "inside_page",
    "invariance",
    "maximise",
    "occlusion",
    "of_detector",
    "open_network",
    "receptive_fields",
    "saliency",
    "shown_layers",
    "similarity",
    "strongest",
    "untrained",
]
