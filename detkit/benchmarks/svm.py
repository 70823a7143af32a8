"""R-CNN's support vector machines beside scikit-learn's, which are liblinear's."""

import torch
from torch import Tensor

from detkit.ops import feature_scale, fit_svm
from detkit.runtime.race import Benchmark, Job, Runner, Setting

WINDOWS, FEATURES, CLASSES = 5000, 4096, 20
C, POSITIVE, BIAS = 0.001, 2.0, 10.0  # R-CNN's


def windows(device: str) -> tuple[Tensor, Tensor]:
    """Return features (WINDOWS, FEATURES) as a ReLU leaves them, of norm 20, and labels (WINDOWS, CLASSES), +1 or -1.

    A third of the windows are objects, each of one class, which a twentieth of the features tells.
    """
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3 * CLASSES, (WINDOWS,), generator=generator)
    telling = torch.rand(3 * CLASSES, FEATURES, generator=generator) < 0.05
    telling[CLASSES:] = False
    features = (torch.randn(WINDOWS, FEATURES, generator=generator) - 0.5 + telling[label]).relu()
    labels = torch.where(label.unsqueeze(1) == torch.arange(CLASSES), 1, -1)
    return (features * feature_scale(features)).to(device), labels.to(device)


def detkit_all(setting: Setting) -> Job:
    features, labels = windows(setting.device)
    return lambda: fit_svm(features, labels, C, POSITIVE, BIAS)


def sklearn_one(_: Setting) -> Job:
    from sklearn.svm import LinearSVC

    features, labels = windows("cpu")
    x, y = features.numpy(), labels[:, 0].numpy()
    machine = LinearSVC(loss="hinge", C=C, intercept_scaling=round(BIAS), class_weight={1: POSITIVE}, random_state=0)
    return lambda: machine.fit(x, y)


BENCHMARKS = (
    Benchmark(
        f"SVM, {WINDOWS} windows of {FEATURES} features",
        (Runner(f"detkit, {CLASSES} classes", detkit_all, True), Runner("scikit-learn, 1 class", sklearn_one)),
    ),
)
