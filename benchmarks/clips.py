"""What tokens of clips are worth: a classifier beside pixels, and codebooks of clips. Few clips, small models, one CPU.

    python benchmarks/clips.py VIDEOS [--out FOLDER] [--steps 120] [--pretrain 300] [--seeds 1]

VIDEOS is a folder of videos, of which each is a class (the labelled sign-language clips: one recording a sign). Each is
cut into three parts of equal length. A fold learns from two parts of every video and is tested on the third, one clip
in its middle: no frame of a test is learned from, but others of the same recording are. What a classifier can show here
is that it tells recordings apart at other times, not that it knows signs of other people.

| arm | |
|---|---|
| classifier | from random sub-clips of the tokens of the two parts |
| fine-tuned | the same steps, begun with a masked model that learned from the same parts without labels |
| pixels | the class of the nearest of all sub-clips of the two parts: 16 x 16 grey pixels a frame, by mean square |
| one frame | likewise, of the middle frame alone: what the place gives away |

Intervals are Wilson's, 95 %, of the tests of all folds, with several seeds of their mean. The tokenizer
(`patch`) is fitted on frames of all parts, without labels. Then the codebooks of clips (`clip-codebook`).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

import tokenshard
from tokenshard.shards.clip_figures import clip_figures
from tokenshard.spec.job import ConvertVideo, LearnJob, TrainClassifier, TrainMtm, build_job
from tokenshard.training.start import train

PARTS, FPS, SIDE, FRAMES = 3, 15, 96, 6
GRID = (FRAMES, 12, 12)
MODEL = {"size": "micro", "stride": 4, "stem": "patch", "tubelet": 2}
AUGMENT = {"crop_scale": [0.6, 1.0], "synonyms": 0.1, "swap": 0, "noise": 0.1, "cutmix": 0}


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share of ``count`` tests (Wilson 1927)."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return middle - half, middle + half


def seconds_of(video: Path) -> float:
    with av.open(str(video)) as container:
        return float(container.duration) / 1e6


def convert(videos: Path, out: Path) -> Path:
    """The parts of all videos as clips of their own, with a column `part`."""
    names = sorted(path for path in videos.iterdir() if path.is_file())
    table = out / "parts.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "part", "start", "end"], lineterminator="\n")
        writer.writeheader()
        for video in names:
            edges = np.linspace(0, seconds_of(video), PARTS + 1)
            for part in range(PARTS):
                place = {"path": str(video.resolve()), "label": video.stem, "part": part}
                writer.writerow({**place, "start": round(edges[part], 3), "end": round(edges[part + 1], 3)})
    job = {
        "source": {"path": str(table), "fps": FPS, "clip_seconds": 60, "size": SIDE, "fit": "center-crop"},
        "output": str(out / "tokens"),
        "tokenizer": "patch:8x8,k=256",
        "engine": {"kind": "local", "workers": 0},
    }
    tokenshard.run(build_job(ConvertVideo, job))
    return out / "tokens"


def trained(kind: type[LearnJob], fields: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a run, which is not run again where it is finished."""
    return train(build_job(kind, fields), lambda text: None).metrics


def pixel_neighbours(tokens: Path, videos: Path, fold: int) -> dict[str, int]:
    """Tests of a fold that the nearest sub-clip, or its middle frame, gets right."""
    dataset = tokenshard.open(tokens)
    learned: list[tuple[NDArray[np.float32], int]] = []
    tests: list[tuple[NDArray[np.float32], int]] = []
    for number in range(len(dataset)):
        sample = dataset[number]
        frames = grey(videos, dataset, sample)
        last = len(frames) - FRAMES
        if int(sample["part"]) == fold:
            tests.append((frames[last // 2 : last // 2 + FRAMES], sample["label"]))
        else:
            learned += [(frames[first : first + FRAMES], sample["label"]) for first in range(last + 1)]
    right = {}
    for name, chosen in (("pixels", slice(None)), ("one frame", slice(FRAMES // 2, FRAMES // 2 + 1))):
        known = np.stack([clip[chosen].ravel() for clip, _ in learned])
        labels = [label for _, label in learned]
        right[name] = sum(
            labels[int(np.square(known - clip[chosen].ravel()).mean(1).argmin())] == y for clip, y in tests
        )
    return right


def grey(videos: Path, dataset: Any, sample: dict[str, Any]) -> NDArray[np.float32]:
    """The frames of a clip, decoded from its video: float32 [T, 16, 16] in [0, 1]."""
    names = next(column.names for column in dataset.manifest.columns if column.name == "label")
    (video,) = videos.glob(f"{names[sample['label']]}.*")
    wanted, found = set(sample["pts"]), []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            if round(frame.pts * stream.time_base * 1_000_000) in wanted:
                pixels = frame.to_ndarray(format="gray").astype(np.float32) / 255
                side = min(pixels.shape)
                top, left = ((size - side) // 2 for size in pixels.shape)
                cut = pixels[top : top + side // 16 * 16, left : left + side // 16 * 16]
                found.append(cut.reshape(16, side // 16, 16, side // 16).mean((1, 3)))
    return np.stack(found)


def accuracies(videos: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    tokens = convert(videos, out)
    tests, right = 0, dict.fromkeys(("classifier", "fine-tuned", "pixels", "one frame"), 0.0)
    bits = []
    for fold in range(PARTS):
        parts = {"path": str(tokens), "where": f"part != {fold}", "val_where": f"part == {fold}", "crop": GRID}
        common = {"source": parts, "batch": 16, "log": {"every": 50, "checkpoint_every": 10_000}}
        masked = out / f"masked{fold}"
        found = trained(
            TrainMtm,
            {
                **common,
                "output": str(masked),
                "model": MODEL,
                "decoder": {"depth": 2},
                "optimizer": {"lr": 1e-3, "ema": 0.98},
                "steps": options.pretrain,
                "samples": 0,
            },
        )
        bits.append(found["val_bits_per_token"])
        for seed in range(options.seeds):
            for arm, start in (("classifier", None), ("fine-tuned", str(masked))):
                fields = {"optimizer": {"lr": 1e-3, "ema": 0.98}, "augment": AUGMENT, "steps": options.steps}
                model = MODEL if start is None else {}
                place = str(out / f"{arm}{fold}-{seed}")
                run = {**common, **fields, "model": model, "start": start, "seed": seed, "output": place}
                metrics = trained(TrainClassifier, run)
                right[arm] += metrics["val_top1"] * 8 / options.seeds
                print(fold, seed, arm, f"{metrics['val_top1']:.3f}", flush=True)
        for name, count in pixel_neighbours(tokens, videos, fold).items():
            right[name] += count
        tests += 8
    result: dict[str, Any] = {"tests": tests, "masked_bits_per_token": bits}
    for name, count in right.items():
        low, high = wilson(count, tests)
        result[name] = {"top1": count / tests, "low": low, "high": high}
        print(f"{name:11s} {count / tests:.3f} ({low:.3f} - {high:.3f}) of {tests} tests", flush=True)
    return result


def codebooks(videos: Path, out: Path) -> dict[str, Any]:
    """Figures of codebooks of clips, by the features they are made of."""
    result = {}
    for name in ("patch:8x8", "default", "default,k=32"):
        place = out / f"codebooks-{name.replace(':', '-').replace(',', '-')}"
        source = {"path": str(videos), "fps": 8, "size": 256, "fit": "center-crop"}
        job = {
            "source": source,
            "output": str(place),
            "tokenizer": f"clip-codebook:{name}",
            "engine": {"kind": "local", "workers": 0},
        }
        tokenshard.run(build_job(ConvertVideo, job))
        dataset = tokenshard.open(place)
        tokenizer = dataset.tokenizer
        kept = dataset.table(["codebook"])["codebook"].to_pylist()
        features = sum(dataset.table(["num_tokens"])["num_tokens"].to_pylist()) * tokenizer.config.features.dim * 2
        stored = sum(map(len, kept)) + sum(group.length for group in code_chunks(dataset))
        figures = {**clip_figures(dataset), "share_of_fp16": stored / features}
        result[name] = figures
        print(name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    return result


def code_chunks(dataset: Any) -> list[Any]:
    return [chunk for shard in dataset.manifest.shards for group in shard.row_groups for chunk in group.codes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("clips-work"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--pretrain", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"codebooks": codebooks(options.videos, options.out)}
    result |= accuracies(options.videos, options.out, options)
    (options.out / "clips.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
