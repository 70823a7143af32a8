"""The kinds of files that detkit reads: to add one is an entry in a list of its neighbours."""

from tests.campaign.formats.base import Files, Format
from tests.campaign.formats.datasets import DATASET_FORMATS
from tests.campaign.formats.images import IMAGE_FORMATS
from tests.campaign.formats.results import RESULT_FORMATS
from tests.campaign.formats.settings import SETTINGS_FORMATS
from tests.campaign.formats.weights import WEIGHTS_FORMATS

__all__ = ["FORMATS", "Files", "Format"]

FORMATS = {
    one.name: one for one in (*DATASET_FORMATS, *IMAGE_FORMATS, *RESULT_FORMATS, *SETTINGS_FORMATS, *WEIGHTS_FORMATS)
}
