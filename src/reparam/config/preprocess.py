"""Section `preprocess`."""

from typing import Literal

from reparam.config.section import Count, MaybeShare, Section, Seed, Share, Side, Strings


class PreprocessConfig(Section):
    """The conversion of raw images to arrays of one shape, and their split."""

    seed: Seed
    """Seed of the split, and of the pixels that static binarization draws."""

    image_size: Side | None
    """Side in pixels: the shorter side is resized to it, then the centre is cropped; null keeps images unchanged."""

    channels: Literal[1, 3]
    """Channels of each pixel: grey, or red, green and blue."""

    classes: Strings | None
    """Names of the classes to keep; null keeps all."""

    validation: MaybeShare
    """Share or number of training images held out to decide when training stops; 0 trains on all, up to the last
    epoch."""

    test: Share
    """Share or number of all images that `evaluate` scores; ignored if the source publishes a test split."""

    limit: Count | None
    """Largest number of images in each split, for quick trials; null keeps all."""

    binarization: Literal["none", "threshold", "static", "dynamic"]
    """How grey pixels become black or white: at the middle, drawn once, or drawn again at each visit from the grey."""

    scaling: Literal["unit", "symmetric", "standard"]
    """Pixels as the model sees them: in [0, 1], in [-1, 1], or with mean 0 and variance 1 over the training images."""

    on_error: Literal["fail", "skip"]
    """Treatment of unreadable images: stop and list them, or leave them out and list them in the card."""
