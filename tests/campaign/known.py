"""What fails today, and why: each goes with its mend, and this file with the last of them."""

NUMBERS = "numbers beyond int64, or of more than 4,300 digits"
FORMATS_FAILING: dict[str, str] = {
    "voc": f"unknown and multi-byte encodings; {NUMBERS}",
    "coco": f"{NUMBERS}; negative areas",
    "yolo": NUMBERS,
    "data_yaml": NUMBERS,
    "flags": f"{NUMBERS}; negative areas",
    "image": "size and pixels turned differently; memory for a small file",
    "mat": "scipy's reader ends the process",
    "npz": "damaged stores are accepted, or end with an exception",
    "npz_arrays": "a store's arrays are not checked",
    "training": NUMBERS,
    "pt": "damaged checkpoints are accepted",
    "pt_contents": "a checkpoint's contents are not checked",
    "run": "a training state is not checked",
}
