"""Catalogue of metrics: name, unit, direction, definition and source of each one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QUALITY_VERSION = 1
"""Raised whenever a metric's value for the same frames, or the default score, changes."""

Better = Literal["higher", "lower", "neither"]
Needs = Literal["frames", "reference", "weights", "renders", "run"]


@dataclass(frozen=True)
class Metric:
    """One number about a render.

    Args:
        name: Its name in recipes, records and reports.
        unit: Unit of its values; empty for a plain number.
        better: ``"higher"``, ``"lower"``, or ``"neither"`` where both ends are bad.
        definition: What is computed, in a sentence or two.
        source: Who defined it, or what computes it.
        needs: What it is computed from. ``"frames"``: the clip alone. ``"reference"``: a second
            clip. ``"weights"``: a second clip and a network that lies on this machine.
            ``"renders"``: several renders of one job. ``"run"``: the clock and the memory. The
            last two aren't computed by ``measure``.
        is_default: Whether it is measured where no names are given.
        min_frames: Fewest frames that it can be computed of.
        min_size: Least height and width, in pixels.
    """

    name: str
    unit: str
    better: Better
    definition: str
    source: str
    needs: Needs = "frames"
    is_default: bool = True
    min_frames: int = 1
    min_size: int = 1

    def is_large_enough(self, shape: tuple[int, ...]) -> bool:
        """Whether a clip of this shape, (T, H, W, 3), has the frames and pixels that it needs."""
        return shape[0] >= self.min_frames and min(shape[1:3]) >= self.min_size


DIAGONAL = "1/1000 of the diagonal"
_DIS = "DIS optical flow: Kroeger et al. 2016, arXiv:1603.03590, OpenCV's medium preset"
_SSIM = "Wang et al. 2004, scikit-image's structural_similarity(channel_axis=-1)"

_ALL = (
    Metric(
        "inter_frame_ssim", "", "higher",
        "Structural similarity of neighbouring frames, the mean over all pairs. A frozen clip has "
        "1, so it says nothing without a look at change.",
        _SSIM, min_frames=2, min_size=7,
    ),
    Metric(
        "inter_frame_ssim_min", "", "higher",
        "The least structural similarity of two neighbouring frames: one jump is enough.",
        _SSIM, min_frames=2, min_size=7,
    ),
    Metric(
        "change", "", "neither",
        "Structural similarity of neighbouring frames, less the least one of frames 2, 4, 8... "
        "apart, each the mean of at most 8 pairs: near 0 where a clip gets nowhere, however much "
        "its noise moves.",
        "flowblend, by scikit-image's structural_similarity", min_frames=3, min_size=7,
    ),
    Metric(
        "flow_mean", f"{DIAGONAL} a frame", "neither",
        "Length of the optical flow between neighbouring frames, the mean over pixels and pairs. "
        "It says how much moves, not whether that was asked for.",
        _DIS, min_frames=2, min_size=16,
    ),
    Metric(
        "flow_std", f"{DIAGONAL} a frame", "lower",
        "Standard deviation, over the pairs of neighbouring frames, of the mean length of the "
        "optical flow: how unevenly a clip moves. As a fraction of the diagonal, times 1000, it "
        "has the unit of step studies that print \"optical-flow standard deviation (x 1e3)\".",
        _DIS, min_frames=3, min_size=16,
    ),
    Metric(
        "unsteadiness", "", "lower",
        "How much the optical flow changes from one pair of frames to the next, followed along "
        "itself: the mean length of the change, divided by flow_mean + 0.5. Near 0 where motion "
        "goes on as it was, about 1 and more where it jumps, stutters or is made of noise.",
        _DIS, min_frames=3, min_size=16,
    ),
    Metric(
        "flicker", "grey levels", "lower",
        "Absolute second difference over time of a frame's mean brightness, the mean over time: "
        "light that pulses, which even change and motion don't cause.",
        "flowblend", min_frames=3,
    ),
    Metric(
        "sharpness", "grey levels squared", "neither",
        "Variance of the Laplacian of the brightness, the mean over frames. Blur lowers it, noise "
        "raises it.",
        "Pech-Pacheco et al. 2000, OpenCV's Laplacian",
    ),
    Metric(
        "high_frequency", "share of energy", "neither",
        "Share of the brightness's spectral energy, without its mean, above a quarter of a cycle "
        "a pixel; under a Hann window, the mean over frames. Blur lowers it, noise raises it.",
        "flowblend, by numpy's FFT", min_size=4,
    ),
    Metric(
        "psnr", "dB", "higher",
        "Peak signal-to-noise ratio to the reference, of the whole clip; 100 where they are "
        "equal, and at most.",
        "10 log10(255^2 / mean squared error)", "reference",
    ),
    Metric(
        "ssim", "", "higher",
        "Structural similarity to the reference, the mean over frames.",
        _SSIM, "reference", min_size=7,
    ),
    Metric(
        "delta_e", "CIEDE2000", "lower",
        "Difference in colour from the reference, the mean over pixels and frames; 1 is about "
        "what a person can just see.",
        "CIE 142-2001, scikit-image's deltaE_ciede2000", "reference",
    ),
    Metric(
        "lpips", "", "lower",
        "Distance of a vision network's unit-length features from the reference's, squared, the "
        "mean over places, layers and frames: LPIPS without its learned weights of channels, so "
        "its values aren't those of published tables.",
        "Zhang et al. 2018, arXiv:1801.03924, its unweighted form; by default over ResNet-50",
        "weights", is_default=False,
    ),
    Metric(
        "clip_similarity", "", "higher",
        "Cosine between CLIP's embeddings of a frame and of the reference's frame, the mean over "
        "frames.",
        "Radford et al. 2021, arXiv:2103.00020", "weights", is_default=False,
    ),
    Metric(
        "dino_similarity", "", "higher",
        "Cosine between DINOv2's embeddings of a frame and of the reference's frame, the mean "
        "over frames.",
        "Oquab et al. 2023, arXiv:2304.07193", "weights", is_default=False,
    ),
    Metric(
        "trajectory_spread", DIAGONAL, "lower",
        "How far points of a grid, followed through several renders of one job, are from their "
        "mean path: the root of the mean square over renders, points and frames.",
        _DIS, "renders", is_default=False, min_frames=2, min_size=16,
    ),
    Metric(
        "bit_equal", "", "higher",
        "1 where all renders of one job have the same pixels, otherwise 0.",
        "hash of the frames", "renders", is_default=False,
    ),
    Metric(
        "elapsed_s", "s", "lower",
        "Seconds of a render: sampling, decoding, publishing.",
        "the clock", "run", is_default=False,
    ),
    Metric(
        "elapsed_share", "%", "lower",
        "Seconds as a share of the 50-step render's, or of the longest where there is none.",
        "the clock", "run", is_default=False,
    ),
    Metric(
        "step_s", "s", "lower",
        "Seconds of a step, the median.",
        "the clock", "run", is_default=False,
    ),
    Metric(
        "peak_rss_bytes", "bytes", "lower",
        "Most main memory of the process during a render.",
        "the operating system", "run", is_default=False,
    ),
    Metric(
        "peak_vram_bytes", "bytes", "lower",
        "Most memory of the accelerator during a render.",
        "torch", "run", is_default=False,
    ),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics by name, in the order in which reports list them."""
