"""`dyngen extract-motion`: from videos to a motion.zarr, by dense optical flow.

From each start frame the flow to every later frame is estimated directly, not summed up from frame
to frame, so that errors do not grow: coarse to fine, each time beginning with the flow to the frame
before. The flow back, estimated likewise, says where to trust it (Sundaram, Brox & Keutzer 2010):

    |F(p) + B(p + F(p))|^2 < 0.01 (|F|^2 + |B|^2) + 0.5.

Where that fails, mostly where something is covered, displacements are interpolated in time between
the frames where it holds.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.errors import DataError
from data_modules.motion_store import MotionClip, MotionWriter
from data_modules.side_by_side import cores, in_order
from dyngen.simulate.garden import Garden, simulate

logger = logging.getLogger(__name__)

Method = Literal["dis", "tvl1", "raft"]
Flow = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], np.ndarray]

CUT = 0.06  # mean difference of grey, 0 to 1, of successive frames
CUT_RATIO = 6.0  # by which it exceeds what is usual in the clip
UNEVEN = 0.2  # part by which times between frames may differ
STILL = 0.3  # pixels; nothing is said to move that moves less
RAFT = "torchvision.models.optical_flow"
VIDEO_EXTRA = "it comes with the extra 'video' (pip install 'dyngen[video]')"


@dataclass(frozen=True)
class Wish:
    """What is asked of every clip.

    Args:
        width, height: of clips in pixels.
        frames: T, frames after the start frame.
        method: of the flow.
        with_frames: Whether to keep the frames.
        most_camera: Pixels by which the camera may move.
        least_quality: Part of the displacements that must be consistent.
    """

    width: int
    height: int
    frames: int
    method: Method
    with_frames: bool
    most_camera: float
    least_quality: float


class Stretch(NamedTuple):
    """A start frame of a video and those after it: (T + 1, H, W, 3) uint8."""

    source: str
    start: int
    fps: float
    frames: np.ndarray


class Video(NamedTuple):
    """A video file that can be used."""

    path: Path
    source: str
    fps: float
    frames: int


def extract_motion(
    videos: list[str],
    out: Path | str,
    width: int = 256,
    height: int = 160,
    frames: int = 149,
    every: int = 10,
    fps: float | None = None,
    method: Method = "dis",
    with_frames: bool = True,
    most_camera: float = 2.0,
    least_quality: float = 0.6,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Estimate how the pixels of videos move, and write it as a motion.zarr.

    A video that cannot be used, a clip with a cut, with a camera that moves, or in which nothing
    does is left out with a sentence, which is also kept in the attribute `refused`; the others go
    on. A run that was stopped goes on where it was.

    Args:
        videos: Files of videos: MP4, GIF or whatever FFmpeg reads.
        out: Folder to write, such as `motion.zarr`.
        width: Of clips in pixels; frames are made to cover the size, and the rest is cropped.
        height: Of clips in pixels.
        frames: T, frames after the start frame; a video needs one more.
        every: Frames from one start frame to the next.
        fps: Take frames as evenly spaced at this rate, whatever the files say.
        method: `dis` (Kroeger et al. 2016), `tvl1` (Zach et al. 2007), which needs
            opencv-contrib-python-headless, or `raft` (Teed & Deng 2020), which needs torchvision.
        with_frames: Write the frames too, which a renderer is trained on.
        most_camera: Pixels by which the corners may move with the camera.
        least_quality: Part of the displacements that must agree forward and backward.
        workers: Processes; by default one for each core.
        overwrite: Replace what is at `out`.
        progress: Show a progress bar.

    Returns:
        `out`.

    Raises:
        FileExistsError: If something is at `out` and `overwrite` is off.
        ValueError: If an option is out of range, a library is missing, or no clip is left.
    """
    for name, value in (("frames", frames), ("every", every), ("workers", workers or 1)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, not {value}.")
    if min(width, height) < 16:
        raise DataError(f"Clips of {width}x{height} are too small; use 16 pixels or more.")
    if fps is not None and not fps > 0:
        raise DataError(f"fps must be positive, not {fps:g}.")
    if not videos:
        raise DataError("There are no videos; name some, such as extract-motion *.mp4.")
    wish = Wish(width, height, frames, method, with_frames, most_camera, least_quality)
    flow_of(method)  # tells at once if a library is missing
    _av()
    attributes: dict[str, Any] = {
        "title": "Motion extracted from videos",
        "source": f"dyngen {version('dyngen')}, extract-motion by {method}",
        "dyngen_version": version("dyngen"),
        "videos": [str(video) for video in videos],
        "every": every,
        "fps_given": fps or 0.0,
        **asdict(wish),
    }
    writer = MotionWriter(Path(out), attributes, overwrite)
    usable = [_or_sentence(partial(probe, Path(video), frames, fps)) for video in videos]
    counts = [1 if isinstance(v, str) else (v.frames - frames - 1) // every + 1 for v in usable]
    told = set(writer.refused)
    with _bar(progress) as bar:
        bar_task = bar.add_task("extracting motion", total=sum(counts), completed=writer.done)
        tasks = _tasks(usable, counts, wish, every, writer.done)
        for clip in in_order(partial(follow, wish), tasks, workers or cores()):
            writer.append(clip)
            if isinstance(clip, str) and clip not in told:
                logger.warning("%s", clip)
                told.add(clip)
            bar.advance(bar_task)
    clips, refused = writer.clips, len(writer.refused)
    writer.finish()
    logger.info("wrote %d clips of %d frames to %s, and left out %d", clips, frames, out, refused)
    return Path(out)


def probe(path: Path, frames: int, fps: float | None = None) -> Video:
    """Read a video's times, without decoding it.

    Raises:
        DataError: If it cannot be read, is too short, or its frames are not evenly spaced.
    """
    av = _av()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: there is no video in it.")
            stream = container.streams.video[0]
            times = [packet.pts for packet in container.demux(stream) if packet.size]
            base = float(stream.time_base or 1)
            rate = float(stream.average_rate or 0)
    except (av.FFmpegError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise DataError(f"{path}: it cannot be read as a video ({reason}).") from error
    if len(times) < frames + 1:
        raise DataError(
            f"{path}: it has {len(times)} frames, but clips of {frames} frames after the start "
            f"frame need {frames + 1}; ask for fewer with --frames."
        )
    known = np.sort(np.array([t for t in times if t is not None], dtype=np.float64)) * base
    if fps is None and len(known) == len(times) and len(times) > 1:
        steps = np.diff(known)
        usual = float(np.median(steps))
        # A time is off by a tick of the file's clock at most.
        if np.abs(steps - usual).max() > max(UNEVEN * usual, 1.5 * base) or usual <= 0:
            raise DataError(
                f"{path}: its frame rate varies, from {steps.min() * 1e3:.0f} to "
                f"{steps.max() * 1e3:.0f} ms between frames; convert it to a constant rate, or say "
                "--fps to take its frames as evenly spaced."
            )
        measured = (len(known) - 1) / (known[-1] - known[0])
        # What a file says is more exact than its clock, if it is not about something else.
        rate = rate if abs(rate / measured - 1) < 0.01 else measured
    return Video(path, path.name, float(fps or rate or 30.0), len(times))


def decode(video: Video, width: int, height: int) -> Iterator[np.ndarray]:
    """The frames of a video, (height, width, 3) uint8: covering the size, the rest cropped.

    Raises:
        DataError: If a frame cannot be decoded, or is transparent somewhere.
    """
    av, cv2 = _av(), _cv2()
    try:
        with av.open(str(video.path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if _has_alpha(frame):
                    pixels = frame.to_ndarray(format="rgba")
                    if pixels[..., 3].min() < 255:
                        raise DataError(
                            f"{video.path}: frame {number} is transparent in places (an alpha "
                            "channel); lay it over a background first."
                        )
                    pixels = pixels[..., :3]
                else:
                    pixels = frame.to_ndarray(format="rgb24")
                yield _fitted(cv2, pixels, width, height)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{video.path}: it cannot be decoded ({error}).") from error


def follow(wish: Wish, stretch: Stretch | str) -> MotionClip | str:
    """The clip of a stretch of frames, or one sentence why there is none."""
    if isinstance(stretch, str):
        return stretch
    frames, source = stretch.frames, stretch.source
    cut = find_cut(frames)
    if cut is not None:
        number = stretch.start + cut
        return f"{source}: there is a cut before frame {number}; clips across it are left out."
    forward, consistent = trace(frames, flow_of(wish.method))
    where = f"{source}: in the clip from frame {stretch.start}"
    camera = camera_motion(forward)
    if camera > wish.most_camera:
        return f"{where} the camera moves, by {camera:.1f} pixels; stabilise it, or leave it out."
    quality = float(consistent.mean())
    if quality < wish.least_quality:
        return (
            f"{where} only {quality:.0%} of the motion is the same forward and backward; it is too "
            "fast or too fine to follow."
        )
    displacement = fill_in_time(forward, consistent)
    size = np.linalg.norm(displacement, axis=1).max(0)  # (H, W)
    if np.quantile(size, 0.995) < STILL:
        return f"{where} nothing moves."
    return MotionClip(
        image=frames[0],
        displacement=displacement.astype(np.float16),
        fps=stretch.fps,
        quality=quality,
        source=source,
        start_frame=stretch.start,
        frames=frames[1:] if wish.with_frames else None,
        mask=(size > STILL).astype(np.uint8),
    )


def trace(frames: np.ndarray, flow: Flow) -> tuple[np.ndarray, np.ndarray]:
    """The motion from the first frame to each of the others.

    Args:
        frames: (T + 1, H, W, 3) uint8.
        flow: Estimates the flow (H, W, 2) from one frame to another, given a guess or None.

    Returns:
        Displacements (T, 2, H, W) in pixels, and where they agree forward and backward (T, H, W).
    """
    cv2 = _cv2()
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    there, consistent = [], []
    forward = backward = None
    for later in frames[1:]:
        forward = flow(frames[0], later, forward)
        backward = flow(later, frames[0], backward)
        u, v = x + forward[..., 0], y + forward[..., 1]
        back = cv2.remap(
            backward, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(1e3, 1e3)
        )
        size = np.square(forward).sum(-1) + np.square(back).sum(-1)
        consistent.append(np.square(forward + back).sum(-1) < 0.01 * size + 0.5)
        there.append(forward.transpose(2, 0, 1))
    return np.stack(there), np.stack(consistent)


def fill_in_time(displacement: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Interpolate displacements (T, 2, H, W) in time where they are not trusted (T, H, W).

    Before the first trusted frame it is interpolated from the start frame, where nothing has moved;
    after the last one it stays; a pixel that is never trusted keeps what was estimated.
    """
    frames = len(displacement)
    start = np.zeros_like(displacement[:1])
    motion = np.concatenate([start, displacement])
    known = np.concatenate([np.ones_like(trusted[:1]), trusted])
    number = np.arange(frames + 1)[:, None, None]
    before = np.maximum.accumulate(np.where(known, number, 0), 0)
    after = np.minimum.accumulate(np.where(known, number, frames + 1)[::-1], 0)[::-1]
    after = np.where(after > frames, before, after)
    weight = (number - before) / np.maximum(after - before, 1)
    low = np.take_along_axis(motion, before[:, None], 0)
    high = np.take_along_axis(motion, after[:, None], 0)
    filled = low + weight[:, None] * (high - low)
    keep = ~trusted.any(0)
    return np.where(keep, displacement, filled[1:]).astype(displacement.dtype)


def camera_motion(displacement: np.ndarray) -> float:
    """How far the corners move with most of the picture, in pixels.

    A rotation, scaling and translation is fitted to the displacements (T, 2, H, W) by RANSAC, at
    eight times. Where a camera is still, that of most pixels is none.
    """
    cv2 = _cv2()
    frames, _, height, width = displacement.shape
    step = max(1, min(height, width) // 20)
    y, x = np.mgrid[:height:step, :width:step]
    places = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
    corners = np.array([[x, y, 1] for x in (0, width - 1) for y in (0, height - 1)], np.float64)
    largest = 0.0
    for time in np.unique(np.linspace(0, frames - 1, 8).round().astype(int)):
        moved = places + displacement[time, :, y.ravel(), x.ravel()]
        cv2.setRNGSeed(0)
        fit, inside = cv2.estimateAffinePartial2D(places, moved, ransacReprojThreshold=0.7)
        if fit is not None and inside.mean() > 0.4:
            there = corners @ fit.T
            largest = max(largest, float(np.linalg.norm(there - corners[:, :2], axis=1).mean()))
    return largest


def find_cut(frames: np.ndarray) -> int | None:
    """The first frame (T + 1, H, W, 3) that has nothing to do with the one before, if any."""
    small = frames[:, ::4, ::4].mean(-1) / 255
    change = np.abs(np.diff(small, axis=0)).mean((1, 2))
    limit = max(CUT, CUT_RATIO * float(np.median(change)))
    cuts = np.flatnonzero(change > limit)
    return int(cuts[0]) + 1 if len(cuts) else None


def flow_of(method: Method) -> Flow:
    """The optical flow of a method: `(from, to, guess) -> (H, W, 2)`, of RGB frames.

    Raises:
        DataError: If there is no such method, or the library it needs is missing.
    """
    makers: dict[str, Callable[[], Flow]] = {"dis": _dis, "tvl1": _tvl1, "raft": _raft}
    if method not in makers:
        raise DataError(f"method is '{method}'; it can be {', '.join(makers)}.")
    return makers[method]()


def end_point_error(
    garden: Garden = Garden(),  # noqa: B008 (frozen)
    clips: Iterable[int] = range(4),
    method: Method = "dis",
) -> dict[str, float]:
    """How far extracted displacements are from the truth on a garden, in pixels.

    Args:
        garden: What to draw.
        clips: Which of its clips.
        method: Of the flow.

    Returns:
        `median`, `mean` and `percentile_90` over all frames and pixels of what moves (by half a
        pixel at some time) and is not hidden; `median_all` over all that is not hidden;
        `median_hidden` where it is hidden; `median_before_filling`, and `largest_sway`.
    """
    flow = flow_of(method)
    errors: dict[str, list[np.ndarray]] = {"moving": [], "raw": [], "seen": [], "hidden": []}
    largest = 0.0
    for number in clips:
        clip = simulate(garden, number)
        video = (clip.video.movedim(1, -1).numpy() * 255).round().astype(np.uint8)
        truth, seen = clip.displacement.numpy(), ~clip.hidden.numpy()
        raw, consistent = trace(video, flow)
        size = np.linalg.norm(truth, axis=1)
        moving = seen & (size.max(0) > 0.5)
        error = np.linalg.norm(fill_in_time(raw, consistent) - truth, axis=1)
        errors["moving"].append(error[moving])
        errors["raw"].append(np.linalg.norm(raw - truth, axis=1)[moving])
        errors["seen"].append(error[seen])
        errors["hidden"].append(error[~seen])
        largest = max(largest, float(size.max()))
    joined = {name: np.concatenate(parts) for name, parts in errors.items()}
    return {
        "median": _median(joined["moving"]),
        "mean": float(joined["moving"].mean()),
        "percentile_90": float(np.quantile(joined["moving"], 0.9)),
        "median_all": _median(joined["seen"]),
        "median_hidden": _median(joined["hidden"]),
        "median_before_filling": _median(joined["raw"]),
        "largest_sway": largest,
    }


def _tasks(
    usable: list[Video | str], counts: list[int], wish: Wish, every: int, done: int
) -> Iterator[Stretch | str]:
    """Stretches of frames of each video, and a sentence for each that cannot be had.

    The first `done` were given in an earlier run; where a file breaks off, the sentence stands for
    each start frame that is left, so that they can be counted.
    """
    first = 0
    for video, count in zip(usable, counts, strict=True):
        skipped = min(max(done - first, 0), count)
        first += count
        if skipped == count:
            continue
        if isinstance(video, str):
            yield video
            continue
        given = skipped
        try:
            for stretch in _stretches(video, wish, every, skipped, count):
                yield stretch
                given += 1
            reason = f"{video.path}: it has fewer frames than it says."
        except DataError as error:
            reason = str(error)
        for _ in range(given, count):
            yield reason


def _stretches(video: Video, wish: Wish, every: int, skipped: int, count: int) -> Iterator[Stretch]:
    """Stretches `skipped` to `count` of a video, decoded once; few frames are held."""
    held: list[np.ndarray] = []
    begin = skipped * every  # frame that `held` begins with
    for number, frame in enumerate(decode(video, wish.width, wish.height)):
        if number < begin:
            continue
        held.append(frame)
        if len(held) == wish.frames + 1:
            yield Stretch(video.source, begin, video.fps, np.stack(held))
            begin += every
            held = held[every:]
            if begin >= count * every:
                return


def _or_sentence(work: Callable[[], Video]) -> Video | str:
    try:
        return work()
    except DataError as error:
        return str(error)


def _has_alpha(frame: Any) -> bool:
    name = frame.format.name
    return any(mark in name for mark in ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya8"))


def _fitted(cv2: Any, pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (h, w, 3) to (height, width, 3), from their middle, without distortion."""
    rows, columns = pixels.shape[:2]
    scale = max(width / columns, height / rows)
    size = max(width, round(columns * scale)), max(height, round(rows * scale))
    if size != (columns, rows):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        pixels = cv2.resize(pixels, size, interpolation=how)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _dis() -> Flow:
    """Dense inverse search, with variational refinement, down to the finest scale."""
    cv2 = _cv2()
    search = cv2.DISOpticalFlow_create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    search.setFinestScale(0)  # the preset stops at half the size: 0.19 instead of 0.08 pixels
    return lambda a, b, guess: search.calc(
        _grey(cv2, a), _grey(cv2, b), None if guess is None else guess.copy()
    )


def _tvl1() -> Flow:
    cv2 = _cv2()
    if not hasattr(cv2, "optflow"):
        raise DataError(
            "TV-L1 is not in this OpenCV; install opencv-contrib-python-headless in its place, or "
            "use --method dis."
        )
    solver = cv2.optflow.DualTVL1OpticalFlow_create()

    def flow(a: np.ndarray, b: np.ndarray, guess: np.ndarray | None) -> np.ndarray:
        solver.setUseInitialFlow(guess is not None)
        result = solver.calc(_grey(cv2, a), _grey(cv2, b), None if guess is None else guess.copy())
        return np.asarray(result)

    return flow


def _raft() -> Flow:
    """RAFT with torchvision's weights; it takes no guess."""
    try:
        models = importlib.import_module(RAFT)
    except ImportError as error:
        raise DataError("RAFT needs torchvision; install it, or use --method dis.") from error
    import torch
    from torch.nn import functional

    model = models.raft_large(weights=models.Raft_Large_Weights.DEFAULT).eval()

    def flow(a: np.ndarray, b: np.ndarray, guess: np.ndarray | None) -> np.ndarray:
        both = torch.from_numpy(np.stack([a, b])).movedim(-1, 1).float() / 127.5 - 1
        down, right = (-both.shape[2]) % 8, (-both.shape[3]) % 8
        both = functional.pad(both, (0, right, 0, down), mode="replicate")
        with torch.inference_mode():
            found = model(both[:1], both[1:])[-1][0]
        return found[:, : a.shape[0], : a.shape[1]].movedim(0, -1).contiguous().numpy()

    return flow


def _grey(cv2: Any, image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _cv2() -> Any:
    """OpenCV, on one core: clips are what runs side by side.

    Raises:
        DataError: If it is not installed.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise DataError(f"Optical flow needs opencv-python-headless; {VIDEO_EXTRA}.") from error
    cv2.setNumThreads(1)
    return cv2


def _av() -> Any:
    """PyAV.

    Raises:
        DataError: If it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise DataError(f"Reading videos needs av; {VIDEO_EXTRA}.") from error


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        TimeRemainingColumn(),
        disable=not show,
    )
