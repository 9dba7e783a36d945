"""Clips as tokens: what temporal contexts save, beside H.264 at the same PSNR; speed and memory of a long video.

    python benchmarks/video.py VIDEOS [--work FOLDER] [--tokenizer default] [--only codecs|speed]

VIDEOS is a folder of natural clips (files, not links). They are converted at 8 frames a second, with `patch` (4 x 4,
1,024 codes) or another tokenizer. The
`copy` codec and the `context` codec on frames one by one are fitted on one sample and measured on all ids, models
included. H.264 (libx264, preset medium) codes the same frames; its quality is searched until the PSNR is that of the
tokens, and all bytes of the MP4 count. Speed: frames a CPU second of the whole conversion of a clip looped to ten
minutes of 1080p, plan and pilot included, beside a pipeline of nothing but PyAV (`decode`, RGB by `to_ndarray`) in one
thread and the tokenizer in another, on the first two minutes. CPU seconds of both count all threads, so that the ratio
says what the conversion does beyond those two, and not how busy the machine is; wall clocks are printed too. Memory:
the peak of the process that converts.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from queue import Queue
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

import tokenshard as ts
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.copy import CopyCodec
from tokenshard.report.samples import originals
from tokenshard.spec.job import ConvertVideo, build_job
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.frames import FRAMES, clip_size, decode_frames, encode_frames

FPS = 8
WINDOW = 64
TARGET = 0.75
BASELINE_SECONDS = 120


def job(videos: Path, out: Path, tokenizer: str = "patch:4x4,k=1024", threads: int = 1) -> ConvertVideo:
    source = {"path": str(videos), "fps": FPS, "incomplete": "reject"}
    fields = {"output": str(out), "tokenizer": tokenizer, "max_rejects": 1.0}
    engine = {"kind": "local", "workers": 0, "decode_threads": threads}
    return build_job(ConvertVideo, {"source": source, **fields, "engine": engine})


def cpu() -> float:
    return time.process_time()


def sample(clips: list[NDArray[np.uint16]]) -> list[NDArray[np.uint16]]:
    """A window of each clip, as the pilot of a conversion has them."""
    rng, parts = np.random.default_rng(0), []
    for codes in clips:
        rows, columns = (int(rng.integers(0, max(1, side - WINDOW + 1))) for side in codes.shape[1:])
        parts.append(np.ascontiguousarray(codes[:8, rows : rows + WINDOW, columns : columns + WINDOW]))
    return parts


def flat(parts: list[NDArray[np.uint16]]) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    return np.concatenate([part.ravel() for part in parts]), np.array([part.shape for part in parts], np.int32)


def measure_codecs(clips: dict[str, NDArray[np.uint16]]) -> dict[str, Any]:
    """Bits an id of all clips, by both codecs."""
    codes = list(clips.values())
    total = sum(one.size for one in codes)
    frames = [frame for one in codes for frame in one]
    pilot = sample(codes)
    ids, grids = flat(pilot)
    start = cpu()
    copy = CopyCodec.fit(ids, grids, 1024, total)
    fit = cpu() - start
    spatial = ContextCodec.fit(*flat([f for part in pilot for f in part]), 1024, expected_ids=total)
    ids, grids = flat(codes)
    data, lengths = copy.encode(ids, grids)
    frame_data, frame_lengths = spatial.encode(*flat(frames))
    copy.decode(data, lengths, grids)
    start = cpu()
    assert np.array_equal(copy.decode(data, lengths, grids), ids)
    seconds = cpu() - start
    start = cpu()
    spatial.decode(frame_data, frame_lengths, flat(frames)[1])
    spatial_seconds = cpu() - start
    by_frame = np.add.reduceat(frame_lengths, np.cumsum([0, *(len(one) for one in codes[:-1])]))
    sizes = {
        name: (len(blob) + len(codec.model_bytes()))
        for name, blob, codec in (("copy", data, copy), ("frames", frame_data, spatial))
    }
    return {
        "ids": total,
        "bits_copy": 8 * sizes["copy"] / total,
        "bits_frames": 8 * sizes["frames"] / total,
        "ratio": sizes["copy"] / sizes["frames"],
        "decode_ratio": spatial_seconds / seconds,
        "fit_cpu_seconds": fit,
        "clips": {key: int(a) / int(b) for key, a, b in zip(clips, lengths, by_frame, strict=True)},
        "bytes": {key: int(size) for key, size in zip(clips, lengths, strict=True)},
    }


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float32) - b) ** 2)))


def h264(frames: NDArray[np.uint8], crf: int) -> tuple[int, float]:
    """Bytes of an MP4 of these frames, and the PSNR of what it shows."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    size = file.tell()
    file.seek(0)
    with av.open(file) as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return size, psnr(frames, shown)


def h264_at(frames: NDArray[np.uint8], wanted: float) -> tuple[int, float]:
    """The smallest MP4 that is at least as good."""
    low, high, best = 0, 51, None
    while low <= high:
        crf = (low + high) // 2
        found = h264(frames, crf)
        if found[1] >= wanted:
            best, low = found, crf + 1
        else:
            high = crf - 1
    return best or h264(frames, 0)


def long_video(path: Path, clip: Path, seconds: int = 600) -> None:
    """A clip looped to 1080p, written once."""
    with av.open(str(clip)) as container:
        frames = [f.reformat(1920, 1080, "yuv420p") for _, f in zip(range(48), container.decode(video=0), strict=False)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        stream.options = {"crf": "28", "preset": "ultrafast"}
        for number in range(24 * seconds):
            frame = frames[number % len(frames)]
            frame.pts = number
            frame.time_base = Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def convert_long(path: str, out: str) -> None:
    """In a process of its own: convert, and print peak memory and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, wall = cpu(), time.perf_counter()
    ts.run(job(Path(path), Path(out), threads=2))  # one decodes, while the process encodes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "imports_mb": before / 1024,
                "peak_mb": peak / 1024,
                "cpu": cpu() - start,
                "wall": time.perf_counter() - wall,
            }
        )
    )


def pipelined(path: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Seconds of PyAV, which decodes all frames and makes RGB of those that are taken, beside the tokenizer.

    One thread each, with a queue of two times sixteen frames between them.
    """
    ready: Queue[NDArray[np.uint8] | None] = Queue(2)

    def decode() -> float:
        taken: list[NDArray[np.uint8]] = []
        due = 0.0
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.time >= BASELINE_SECONDS:
                    break
                if frame.time >= due:
                    due += 1 / FPS
                    taken.append(frame.to_ndarray(format="rgb24"))
                if len(taken) == FRAMES:
                    ready.put(np.stack(taken))
                    taken = []
        ready.put(None)
        return time.thread_time()

    encode_frames(tokenizer, np.zeros((1, 16, 16, 3), np.uint8))  # loads what is compiled
    start, wall, mine, count = cpu(), time.perf_counter(), time.thread_time(), 0
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(decode)
        while (frames := ready.get()) is not None:
            encode_frames(tokenizer, frames)
            count += len(frames)
    found = {"frames": count, "cpu": cpu() - start, "wall": time.perf_counter() - wall}
    return found | {"decoding": decoding.result(), "encoding": time.thread_time() - mine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--long-from", type=Path, help="clip that is looped; default: the first")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--tokenizer", default="patch:4x4,k=1024")
    parser.add_argument("--only", choices=["codecs", "speed"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        result: dict[str, Any] = {}
        if options.only != "speed":
            result |= measure_clips(options.videos, work / "tokens", options.tokenizer, options.only is None)
        if options.only != "codecs":
            first = next(path for path in sorted(options.videos.rglob("*")) if path.is_file())
            result |= measure_long(work, options.long_from or first, options.seconds)
        (work / "video.json").write_text(json.dumps(result, indent=1))


def measure_clips(videos: Path, out: Path, tokenizer: str, beside_h264: bool) -> dict[str, Any]:
    """Bits an id of converted clips by both codecs, and the bytes of H.264 at their PSNR."""
    ts.run(job(videos, out, tokenizer))
    dataset = ts.open(out)
    rows = [dataset[number] for number in range(len(dataset))]
    clips = {row["key"]: np.asarray(row["codes"]) for row in rows}
    found = measure_codecs(clips)
    print(
        f"{found['ids']:,} ids of {len(clips)} clips: copy {found['bits_copy']:.3f}, frame by frame "
        f"{found['bits_frames']:.3f} bits an id, ratio {found['ratio']:.3f} (wanted <= {TARGET}); "
        f"decodes {found['decode_ratio']:.2f} times as fast",
        flush=True,
    )
    if not beside_h264:
        return found
    frames = dict(originals(dataset, list(clips)))
    lines: list[dict[str, Any]] = []
    for row in rows:
        key = row["key"]
        if len(row["pts"]) < 8:
            continue
        shown = decode_frames(dataset.tokenizer, clips[key][None], clip_size(row))
        quality = psnr(frames[key], shown)
        size, reached = h264_at(frames[key], quality)
        mine, ratio = found["bytes"][key], found["clips"][key]
        lines.append({"key": key, "psnr": quality, "tokens": mine, "h264": size, "h264_psnr": reached, "ratio": ratio})
        print(
            f"{key:36s} {quality:5.2f} dB  tokens {mine:>8,} B  H.264 {size:>8,} B ({reached:.2f} dB)  "
            f"copy / frames {ratio:.3f}",
            flush=True,
        )
    total = {name: sum(line[name] for line in lines) for name in ("tokens", "h264")}
    print(f"together: tokens {total['tokens']:,} B, H.264 {total['h264']:,} B")
    return {**found, "h264": lines}


def measure_long(work: Path, clip: Path, seconds: int) -> dict[str, Any]:
    """Peak memory and speed of the conversion of a long video, beside decoder and tokenizer alone."""
    long = work / "long.mp4"
    if not long.exists():
        long_video(long, clip, seconds)
    command = [sys.executable, __file__, "--convert-long", str(long), str(work / "long-tokens")]
    memory = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    dataset = ts.open(work / "long-tokens")
    memory["frames"] = sum(dataset.table(["frames"])["frames"].to_pylist())
    parts = pipelined(long, dataset.tokenizer)
    both = {"conversion": memory, "pipelined": parts}
    rates = {name: {clock: one["frames"] / one[clock] for clock in ("cpu", "wall")} for name, one in both.items()}
    ratio = {clock: rates["conversion"][clock] / rates["pipelined"][clock] for clock in ("cpu", "wall")}
    print(
        f"{seconds} s of 1080p: peak {memory['peak_mb']:.0f} MB (imports {memory['imports_mb']:.0f}); frames a CPU "
        f"second: conversion {rates['conversion']['cpu']:.2f}, PyAV and tokenizer {rates['pipelined']['cpu']:.2f}, "
        f"ratio {ratio['cpu']:.3f} (wanted >= 0.8); by the clock {rates['conversion']['wall']:.2f} and "
        f"{rates['pipelined']['wall']:.2f}, ratio {ratio['wall']:.3f}"
    )
    return {"memory": memory, "pipelined": parts, "ratio": ratio}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert-long"]:
        convert_long(*sys.argv[2:4])
    else:
        main()
