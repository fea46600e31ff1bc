"""data/processed, models/vae -> reports/gradients: how noisy gradient estimators are; outside the pipeline.

The reparameterisation trick is compared with the score function.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reparam.config import Config
from reparam.data import store
from reparam.data.batches import Batches, View
from reparam.data.pixels import Pixels
from reparam.errors import ParamsError
from reparam.figures.images import plot_gradient_noise
from reparam.figures.style import png
from reparam.files import whole_directory, write_json
from reparam.models.model import Model
from reparam.models.storage import load_model
from reparam.objectives import leave_one_out
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, random_stream

IMAGES = 100  # a usual batch
REPEATS = 100  # the standard deviation of a variance is then a seventh of it
SAMPLES = (1, 2, 5, 10, 20, 50)  # posterior samples per image


Noise = dict[str, dict[int, float]]  # variance over squared gradient, by estimator and samples


def run(config: Config, paths: Paths, device: str = "auto") -> Noise:
    """Measure how noisy the encoder's gradient is under each estimator, on test images."""
    place = pick_device(device)
    make_deterministic(config.evaluate.seed)
    model, _ = load_model(paths.model, place)
    if not model.stochastic_layers:
        raise ParamsError("gradients: wanted a model with a posterior, found one without, which draws no samples")
    if model.condition.size:
        raise ParamsError("gradients: wanted model.condition 'none', found a conditional model")
    images = store.read_split(paths.processed, "test").images[:IMAGES]
    pixels = Pixels(store.read_card(paths.processed)).to(place)
    [(x, _)] = View(Batches(images, IMAGES, place), pixels).seen(config.evaluate.seed)
    weights = [weight for name, weight in model.named_parameters() if name.startswith(("encoder", "feature"))]
    with random_stream(config.evaluate.seed, "gradients"):
        noise = noise_to_signal(Model(model), weights, x, REPEATS)
    with whole_directory(paths.gradients) as directory:
        write_json(directory / "noise.json", {"images": len(x), "repeats": REPEATS, "variance_over_square": noise})
        (directory / "noise.png").write_bytes(png(plot_gradient_noise(noise)))
    return noise


def show(noise: Noise) -> None:
    """Print a table of it."""
    table = Table("samples per image", *(str(samples) for samples in SAMPLES), title_justify="left")
    table.title = "Variance of the encoder's gradient / squared gradient"
    for name, row in noise.items():
        table.add_row(name, *(f"{row[samples]:.3g}" for samples in SAMPLES))
    Console().print(table)


def _pathwise(model: Model, x: Tensor, samples: int) -> Tensor:
    """Source: Kingma & Welling 2014, eq. 6."""
    return -model.draw(x, x, samples).log_weights.mean(0)


def _score_function(model: Model, x: Tensor, samples: int) -> Tensor:
    """Source: Williams 1992."""
    draw = model.draw(x, x, samples, "score_function")
    return -(draw.log_weights.detach() * draw.log_qz).mean(0)


def _score_function_with_baseline(model: Model, x: Tensor, samples: int) -> Tensor:
    """Subtract the mean over the other samples, or with one sample over the other images."""
    draw = model.draw(x, x, samples, "score_function")
    return -(leave_one_out(draw.log_weights.detach()) * draw.log_qz).mean(0)


Estimator = Callable[[Model, Tensor, int], Tensor]
ESTIMATORS: dict[str, Estimator] = {
    "score function": _score_function,
    "score function, control variate": _score_function_with_baseline,
    "reparameterised": _pathwise,
}


def noise_to_signal(model: Model, weights: Sequence[Tensor], x: Tensor, repeats: int) -> Noise:
    """Measure the variance of each estimator of the ELBO's gradient, over the squared norm of that gradient.

    The variances of all encoder weights are summed; the gradient is the mean over the batch and over the repeats of the
    least noisy estimator with most samples: all are unbiased. Shapes: x (B, C, H, W).
    """
    variances: Noise = {}
    for name, estimator in ESTIMATORS.items():
        variances[name] = {}
        for samples in SAMPLES:
            mean, variance = _moments(_gradients(estimator, model, weights, x, (samples, repeats)))
            variances[name][samples] = variance.sum().item()
    signal = mean.square().sum().item()  # the last: reparameterised, most samples
    return {name: {samples: value / signal for samples, value in row.items()} for name, row in variances.items()}


def _gradients(
    estimator: Estimator, model: Model, weights: Sequence[Tensor], x: Tensor, sizes: tuple[int, int]
) -> Iterator[Tensor]:
    samples, repeats = sizes
    for _ in range(repeats):
        slopes = torch.autograd.grad(estimator(model, x, samples).mean(), weights)
        yield torch.cat([slope.flatten() for slope in slopes]).double()


def _moments(values: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance without keeping the values. Source: Welford 1962."""
    mean = squares = torch.zeros((), dtype=torch.float64)
    for count, value in enumerate(values, start=1):
        delta = value - mean
        mean = mean + delta / count
        squares = squares + delta * (value - mean)
    return mean, squares / (count - 1)
