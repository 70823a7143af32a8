"""What fails today, and why: each goes with its mend, and this file with the last of them."""

ESCAPES = "control characters of names are printed as they are"
NUMBERS = "numbers beyond int64, or of more than 4,300 digits"
FORMATS_FAILING: dict[str, str] = {
    "voc": f"unknown and multi-byte encodings; {NUMBERS}",
    "voc_list": ESCAPES,
    "coco": f"{NUMBERS}; negative areas; {ESCAPES}",
    "yolo": NUMBERS,
    "data_yaml": f"{NUMBERS}; {ESCAPES}",
    "flags": f"{NUMBERS}; negative areas",
    "classes": ESCAPES,
    "image": "size and pixels turned differently; memory for a small file",
    "mat": "scipy's reader ends the process",
    "proposals": ESCAPES,
    "npz": "damaged stores are accepted, or end with an exception",
    "npz_arrays": "a store's arrays are not checked",
    "config": f"NaN and infinity, interpolations, {NUMBERS}; {ESCAPES}",
    "override": f"NaN and infinity, interpolations, momentum, {NUMBERS}",
    "training": NUMBERS,
    "pt": "damaged checkpoints are accepted",
    "pt_contents": "a checkpoint's contents are not checked",
    "run": "a training state is not checked",
    "log": "broken lines of log.jsonl",
}
POINTS_FAILING = "a folder without last.pt cannot be started again; temporary files of killed processes stay"
