"""What rendering came to, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dyngen.report.table import markdown_table

UNPAIRED = "–"


def rendering_markdown(found: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Tables of scores by system, of loops and of speed, then the figures.

    Args:
        found: What `dyngen rendering` writes as JSON.
        figures: Files beside the page.
    """
    size = f"{found['size']['width']}x{found['size']['height']}"
    perceptual = next(name for name in found["by_frame"] if name.startswith("perceptual_"))
    scales = found["sampling"]["loop_scale"]
    trained = " ".join(
        f"{_name(name)}: {of['steps']} steps, {of['seconds'] / 60:.0f} minutes, "
        f"{of['parameters']:,} parameters."
        for name, of in found["training"].items()
    )
    parts = [
        "# Rendering on the garden",
        f"`{found['command']}`, on {found['machine']['processor']} with "
        f"{found['machine']['threads']} thread{'s' * (found['machine']['threads'] > 1)}. {trained}",
        f"{found['clips']} held-out clips, {found['frames']} frames of {size} each. All but "
        "sampled motion are given the clips' own motion; direct splatting and the first frame "
        "repeated have no network, and sampled motion is what the latent diffusion makes of the "
        "first frame alone, rendered.",
        _by_system(found),
        f"PSNR and SSIM are means over frames, higher is better; all others lower. The perceptual "
        f"distance, {perceptual.removeprefix('perceptual_')}, is the one that the renderers were "
        "trained on. The name of a distance ends in that of its features; half of them from the "
        "same law as the other would be apart by the floor. Samples are few for the distances of "
        "windows: hold them against each other and the floor, not against those of other tables.",
        f"## Loops\n\nOf {found['loop_clips']} films that are played again and again, the median; "
        f"motion sampled in {found['sampling']['steps']} steps with "
        f"w = {found['sampling']['guidance_scale']:g}, and that of the held-out clips, to the same "
        f"frequencies. Guidance has u = {scales['with_guidance']:g}, less guidance, that of the "
        f"paper, u = {scales['with_less_guidance']:g}. A sum of a few frequencies repeats by "
        "itself; what guidance lowers is how fast it goes, and how suddenly, where the film begins "
        "anew.",
        _loops(found),
        "## Speed\n\nFrames per second on this machine.",
        _speed(found),
        f"## Figures\n\nPictures are of clip {found['shown_clip']}, the one that moves most.",
        *(f"![{_name(file.rpartition('.')[0])}]({file})" for file in figures),
    ]
    return "\n\n".join(parts) + "\n"


def _by_system(found: Mapping[str, Any]) -> str:
    columns = {"PSNR": found["psnr"], "SSIM": found["ssim"], **found["distances"]}
    systems = list(dict.fromkeys(system for of in columns.values() for system in of))
    rows = [[_name(s), *(_digits(of.get(s)) for of in columns.values())] for s in systems]
    floors = {name: max(of.values()) for name, of in found["floor"].items()}
    rows.append(["floor", *(_digits(floors.get(name)) for name in columns)])
    return markdown_table(["system", *(_name(name) for name in columns)], rows, "---:")


def _loops(found: Mapping[str, Any]) -> str:
    keys = {
        "loop_jump": "last to first frame (of 255)",
        "neighbouring_frames": "neighbouring frames (of 255)",
        "loop_closure": "closure energy (px)",
    }
    ways = found["loop_jump"]
    rows = [[_name(way), *(_digits(found[key][way]) for key in keys)] for way in ways]
    return markdown_table(["motion", *keys.values()], rows, "---:")


def _speed(found: Mapping[str, Any]) -> str:
    sizes = found["frames_per_second"]
    systems = next(iter(sizes.values()))
    rows = [[_name(system), *(_digits(of[system]) for of in sizes.values())] for system in systems]
    return markdown_table(["system", *sizes], rows, "---:")


def _name(key: str) -> str:
    return key.replace("_", " ")


def _digits(value: float | None) -> str:
    return UNPAIRED if value is None else f"{value:.3g}"
