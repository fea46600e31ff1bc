"""data/processed, models/vae -> reports/gradients: how noisy gradient estimators are; outside the pipeline."""

from reparam.config import Config
from reparam.data import store
from reparam.data.batches import Batches
from reparam.errors import ParamsError
from reparam.evaluation import figures
from reparam.evaluation.gradients import noise_to_signal
from reparam.files import whole_directory, write_json
from reparam.models.storage import load_model
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, random_stream

IMAGES = 100  # a usual batch
REPEATS = 100  # the standard deviation of a variance is then a seventh of it


def run(config: Config, paths: Paths, device: str = "auto") -> None:
    """Measure how noisy the encoder's gradient is under each estimator, on test images."""
    place = pick_device(device)
    make_deterministic(config.evaluate.seed)
    model = load_model(paths.model, place)
    if not model.stochastic_layers:
        raise ParamsError("gradients: wanted a model with a posterior, found an autoencoder, which draws no samples")
    images = store.read_split(paths.processed, "test").images[:IMAGES]
    [x] = Batches(images, store.read_card(paths.processed), IMAGES, place).ordered(config.evaluate.seed)
    weights = [weight for name, weight in model.named_parameters() if name.startswith(("encoder", "feature"))]
    with random_stream(config.evaluate.seed, "gradients"):
        noise = noise_to_signal(model, weights, x, REPEATS)
    with whole_directory(paths.gradients) as directory:
        write_json(directory / "noise.json", {"images": len(x), "repeats": REPEATS, "variance_over_square": noise})
        (directory / "noise.png").write_bytes(figures.png(figures.gradient_noise(noise)))
