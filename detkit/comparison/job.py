"""A comparison, part after part; what is done stays done."""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from detkit.comparison.detecting import IMAGES, measure_cost
from detkit.comparison.entries import Entry
from detkit.comparison.measure import evaluate_entry, proposal_seconds, speeds, training_log
from detkit.comparison.page import write_comparison
from detkit.comparison.rows import Compared, Training, screen_tables, to_csv
from detkit.comparison.stores import missing_stores
from detkit.comparison.times import read_times, timed
from detkit.comparison.training import log_path, part, train_entry
from detkit.data.dataset import DetectionDataset
from detkit.errors import Attempt, UserError, in_a_line
from detkit.evaluation.diagnosis import object_groups, operating_score
from detkit.evaluation.errors import analyse_errors
from detkit.files import write_atomic
from detkit.proposals.make import make_store
from detkit.runtime.device import choose_device
from detkit.runtime.race import Setting
from detkit.structures import TruthSet
from detkit.viz import speed_plot

Say = Callable[[str], None]
Update = Callable[[str, int, int], None]


class Comparison:
    """Detectors to compare on `dataset`, with all files in `out`. failures: what went wrong, by detector."""

    def __init__(
        self, entries: Sequence[Entry], overrides: list[str], dataset: DetectionDataset, out: Path, rounds: int
    ) -> None:
        self.entries, self.overrides, self.dataset, self.out = list(entries), overrides, dataset, out
        # the device of the first for all
        device = choose_device(entries[0].config.train.device)
        self.setting = Setting(str(device), torch.get_num_threads(), rounds)
        self.failures: dict[str, str] = {}

    @property
    def left(self) -> list[Entry]:
        """The detectors of which nothing has failed."""
        return [entry for entry in self.entries if entry.name not in self.failures]

    def make_proposals(self, say: Say, update: Update) -> None:
        """Make the proposals that configs name and that do not exist, going on with what an interrupted call left."""
        for path, (dataset, mode) in missing_stores(self.entries).items():
            say(f"proposals of {dataset.name}: {path}")
            with timed(self.out, f"proposals {path}"):
                parameters, workers = {"mode": mode, "seed": 0}, os.cpu_count() or 1
                progress = partial(update, path.name)
                make_store(path, dataset, "selective_search", parameters, workers=workers, progress=progress)

    def train(self, say: Say, update: Update) -> None:
        """Train what is not trained yet. Raises Interrupted, see `train_entry`."""
        configs = [entry for entry in self.entries if entry.source is not None]
        for number, entry in enumerate(configs, 1):
            if entry.finished:
                say(f"{entry.name}: trained already, {entry.folder}")
                continue
            say(f"training {entry.name}, {number} of {len(configs)}; what it says: {log_path(entry, self.out)}")
            try:
                train_entry(entry, self.overrides, self.out, partial(update, f"train {entry.name}"))
            except UserError as error:
                self._fail(entry, str(error), say)

    def measure(self, say: Say, update: Update) -> list[Compared]:
        """Evaluate all, then measure what they take; return those that did not fail."""
        for entry in self.entries:
            if entry.source is None and not entry.finished:
                say(f"{entry.name}: its training has not ended; its best.pt so far is compared")
        rows = []
        truth, times = self.dataset.truth(), read_times(self.out)
        entries = self.left
        for number, entry in enumerate(entries, 1):
            try:
                rows.append(self._row(entry, truth, times.get(part(entry)) if entry.source is not None else None))
            except UserError as error:
                self._fail(entry, f"{entry.name}: {error}", say)
            except Exception as error:  # of the detector's, whatever it is: the others can still be compared
                log = log_path(entry, self.out)
                with open(log, "a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
                self._fail(entry, f"{entry.name}: {in_a_line(error)}; more in {log}", say)
            update("evaluate", number, len(entries))
        return self._with_speed(rows, say, update) if rows else []

    def _row(self, entry: Entry, truth: TruthSet, clocked: float | None) -> Compared:
        """All that is known of a detector but its speed in detection. clocked: seconds of its training, where known."""
        result, detections, masks = evaluate_entry(entry, self.dataset, self.out)
        cost = measure_cost(entry.config, entry.best, self.setting.device)
        errors = analyse_errors(detections, truth, result.metric)
        score = operating_score(errors, detections.scores)
        groups = object_groups(detections, truth, result.metric)
        working = analyse_errors(detections.part(detections.scores >= score), truth, result.metric)
        images_per_second, logged = training_log(entry.folder, entry.config.train.batch)
        training = Training(images_per_second, logged if clocked is None else clocked, clocked is not None)
        return Compared(entry, result, detections, errors, groups, score, working, cost, training, masks=masks)

    def _with_speed(self, rows: list[Compared], say: Say, update: Update) -> list[Compared]:
        entries = [row.entry for row in rows]
        try:
            making = proposal_seconds(entries, self.dataset, self.setting, partial(update, "time of proposals"))
            rows = [replace(row, proposals=seconds) for row, seconds in zip(rows, making)]
            rates = speeds(entries, self.setting, partial(update, "speed"))
            return [replace(row, images_per_second=rate) for row, rate in zip(rows, rates)]
        except UserError as error:
            self.failures["speed"] = f"speed was not measured: {error}"
            say(self.failures["speed"])
            return rows

    def _fail(self, entry: Entry, message: str, say: Say) -> None:
        self.failures[entry.name] = message
        say(f"{entry.name} failed; the others go on")

    def write(self, rows: Sequence[Compared], attempt: Attempt) -> list[str]:
        """Write compare.json, compare.csv, speed.png and report.html; return their names."""
        protocol = self.protocol(rows)
        content = {"protocol": protocol, "failed": self.failures, "detectors": [row.to_dict() for row in rows]}
        files = ["report.html", "compare.csv", "compare.json"]
        write_atomic(self.out / "compare.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_atomic(self.out / "compare.csv", to_csv(rows))
        points = [row.point for row in rows if row.images_per_second and row.result.mAP == row.result.mAP]
        if points:
            with attempt("speed.png"):
                what = f"{protocol['dataset']}, {protocol['metric']}\n{protocol['machine']}"
                speed_plot(points, self.out / "speed.png", what)
            files.append("speed.png")
        with attempt("report.html"):
            path = self.out / "report.html"
            write_comparison(path, rows, points, self.dataset, protocol=protocol, failures=self.failures)
        return files

    def tables(self, rows: Sequence[Compared], width: int) -> list[Table]:
        """Return the tables for a screen of `width` characters."""
        protocol = self.protocol(rows)
        caption = f"{protocol['dataset']}: {protocol['images']} images, {protocol['metric']}\n{protocol['machine']}"
        caption += "\nimages/s: detection, from decoded pixels, proposals stored"
        caption += "\nkinds of errors: mAP at IoU .5 to gain; sizes and crowding: AP at IoU .5"
        if any(not row.training.clocked for row in rows):
            caption += "\n~ training: steps and evaluations, by the run's log"
        return screen_tables(rows, caption, width)

    def protocol(self, rows: Sequence[Compared]) -> dict[str, Any]:
        """Return what the numbers are of."""
        device = self.setting.device
        on = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {self.setting.threads} threads"
        named = [(*name.split(" ", 1), seconds) for name, seconds in read_times(self.out).items()]
        return {
            "dataset": self.dataset.name,
            "split": "test",
            "images": len(self.dataset),
            "metric": rows[0].result.protocol,
            "machine": f"{on}, torch {torch.__version__}",
            "speed": f"best of {self.setting.rounds} interleaved rounds over {IMAGES} images",
            "stores made": {path: seconds for kind, path, seconds in named if kind == "proposals"},
        }
