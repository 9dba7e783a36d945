"""Movies of reconstructed clips play where people look at them: in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

pytest.importorskip("av", reason="videos need PyAV: pip install 'tokenshard[video]'")
from tokenshard.report.movies import movie

pytestmark = pytest.mark.integration


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    found = chromium.new_page()
    yield found
    found.close()


PLAY = """async () => {
    const video = document.querySelector('video');
    await new Promise((done, failed) => {
        video.onended = done;
        video.onerror = () => failed(new Error(video.error.message));
        video.play().catch(failed);
    });
    return {width: video.videoWidth, height: video.videoHeight, duration: video.duration, time: video.currentTime,
            frames: video.getVideoPlaybackQuality().totalVideoFrames, error: video.error};
}"""


def test_a_movie_of_uneven_frames_plays_to_its_end(page: Any, tmp_path: Path) -> None:
    photo = skimage.data.coffee()
    frames = np.stack([photo[4 * t : 4 * t + 121, 6 * t : 6 * t + 161] for t in range(8)])
    pts = [0, 100_000, 250_000, 300_000, 480_000, 600_000, 700_000, 900_000]
    (tmp_path / "clip.mp4").write_bytes(movie(frames, pts, 10.0))
    (tmp_path / "page.html").write_text('<!doctype html><video src="clip.mp4" muted preload="auto"></video>')
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    assert page.evaluate("document.querySelector('video').currentTime") == 0
    played = page.evaluate(PLAY)
    assert (played["width"], played["height"], played["error"]) == (160, 120, None)
    assert 0.9 <= played["duration"] <= 1.1
    assert played["time"] == pytest.approx(played["duration"], abs=0.02)
    assert played["frames"] >= 1


def test_what_is_no_movie_is_told(page: Any, tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "clip.mp4").write_bytes(b"no movie")
    (tmp_path / "page.html").write_text('<!doctype html><video src="clip.mp4" muted></video>')
    page.goto((tmp_path / "page.html").as_uri())
    with pytest.raises(Exception, match=r"(?i)supported|format|open|demux"):
        page.evaluate(PLAY)
