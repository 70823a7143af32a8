"""Batched, padded tensor functions: boxes, anchors, coding, matching, losses, suppression, regions and linear fits."""

from detkit.ops.anchors import default_boxes, grid_anchors, rpn_anchors, torchvision_anchors
from detkit.ops.boxes import (
    area,
    box_iou,
    clip,
    cxcywh_to_xyxy,
    flip,
    gather_boxes,
    paired_iou,
    scale,
    xyxy_to_cxcywh,
)
from detkit.ops.coders import BoxCoder
from detkit.ops.crops import crop_warp, crops_per_chunk
from detkit.ops.kmeans import iou_kmeans
from detkit.ops.letterbox import letterbox
from detkit.ops.losses import (
    anchor_classes,
    focal_loss,
    hard_negative_mask,
    hard_negatives,
    hard_regions,
    multibox_loss,
    ohem_loss,
    region_loss,
    retinanet_loss,
    rpn_loss,
    smooth_l1,
    softmax_loss,
    world_mean,
    world_size,
)
from detkit.ops.masks import mask_targets, object_masks, pack_masks, paste_masks, unpack_masks
from detkit.ops.matching import BACKGROUND, IGNORED, Match, match_regions, match_rpn, match_ssd
from detkit.ops.nms import nms, nms_dense, nms_suppressors
from detkit.ops.places import AnchorMap, PlaceMatch, Places, anchor_boxes, assign_places, decode_places, lay_places
from detkit.ops.ridge import fit_ridge
from detkit.ops.roi import psroi_pool, pyramid_pool, roi_align, roi_pool, spp_pool, spp_windows
from detkit.ops.sampling import sample
from detkit.ops.scales import rescale, short_side_scale, sppnet_scale
from detkit.ops.soft_nms import soft_nms_dense
from detkit.ops.svd import truncated_svd
from detkit.ops.svm import feature_scale, fit_svm
from detkit.ops.yolo import Cells, assign_cells, decode_cells, responsible_boxes, yolo_loss
from detkit.ops.yolov2 import reorg, yolov2_loss
from detkit.ops.yolov3 import yolov3_loss

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "AnchorMap",
    "BoxCoder",
    "Cells",
    "Match",
    "PlaceMatch",
    "Places",
    "anchor_boxes",
    "anchor_classes",
    "area",
    "assign_cells",
    "assign_places",
    "box_iou",
    "clip",
    "crop_warp",
    "crops_per_chunk",
    "cxcywh_to_xyxy",
    "decode_cells",
    "decode_places",
    "default_boxes",
    "feature_scale",
    "fit_ridge",
    "fit_svm",
    "flip",
    "focal_loss",
    "gather_boxes",
    "grid_anchors",
    "hard_negative_mask",
    "hard_negatives",
    "hard_regions",
    "iou_kmeans",
    "lay_places",
    "letterbox",
    "mask_targets",
    "match_regions",
    "match_rpn",
    "match_ssd",
    "multibox_loss",
    "nms",
    "nms_dense",
    "nms_suppressors",
    "object_masks",
    "ohem_loss",
    "pack_masks",
    "paired_iou",
    "paste_masks",
    "psroi_pool",
    "pyramid_pool",
    "region_loss",
    "reorg",
    "rescale",
    "responsible_boxes",
    "retinanet_loss",
    "roi_align",
    "roi_pool",
    "rpn_anchors",
    "rpn_loss",
    "sample",
    "scale",
    "short_side_scale",
    "smooth_l1",
    "soft_nms_dense",
    "softmax_loss",
    "spp_pool",
    "spp_windows",
    "sppnet_scale",
    "torchvision_anchors",
    "truncated_svd",
    "unpack_masks",
    "world_mean",
    "world_size",
    "xyxy_to_cxcywh",
    "yolo_loss",
    "yolov2_loss",
    "yolov3_loss",
]
