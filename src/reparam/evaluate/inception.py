"""Features of an Inception network whose weights the user brings: what a Frechet inception distance is made of."""

import pickle
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.errors import DamagedInputError, MissingInputError, UserError
from reparam.evaluate.sample_quality import frechet

SIDE = 299  # pixels, as the network was trained with (Szegedy et al. 2016)
AT_ONCE = 32  # images: about half a GB of features of the widest layers
WANTED = "the state_dict of torchvision.models.inception_v3 with 1000 classes, saved by torch.save"


def fid_torchvision(path: Path, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return the Frechet distance in features of torchvision's Inception; nothing with fewer than two images of a kind.

    Not the FID of papers: that one is defined by other weights, of the TensorFlow network of 2015, and by its poolings
    and resizing. Compare it between runs of one weights file and one number of images only.
    Shapes: (N, C, H, W), (M, C, H, W) with pixels in [0, 1]. Raises: as `inception_features`.
    """
    if min(len(real), len(fake)) < 2:
        return {}
    return {"fid_torchvision": frechet(inception_features(path, real), inception_features(path, fake))}


@torch.no_grad()
def inception_features(path: Path, images: Tensor) -> Tensor:
    """Return the last pooled features of Inception v3 with the weights in a file; they come back on images' device.

    Images are resized to 299 x 299 pixels; grey ones are repeated for red, green and blue.
    Shapes: (N, C, H, W), C = 1 or 3, pixels in [0, 1] -> (N, 2048).
    Raises: UserError without the file, or with one that does not hold these weights.
    """
    network = _load(path).to(images.device)
    return torch.cat([network(_prepare(part)) for part in torch.split(images, AT_ONCE)])


def _prepare(images: Tensor) -> Tensor:
    """Shapes: (B, C, H, W) in [0, 1] -> (B, 3, 299, 299) in [-1, 1]."""
    resized = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return 2 * resized.expand(-1, 3, -1, -1) - 1


def _load(path: Path) -> nn.Module:
    from torchvision.models import inception_v3

    # On "meta", which neither takes the time nor moves the random stream of an initialisation.
    with torch.device("meta"):
        network: nn.Module = inception_v3(weights=None, aux_logits=False, init_weights=False)
    state = _read(path)
    # The classifier on the side helps training alone; published files hold it.
    weights = {name: value for name, value in state.items() if not name.startswith("AuxLogits.")}
    try:
        # With the classifier of 1000 classes, too: a port of TensorFlow's weights has the same names, 1008 classes, and
        # means a network that pools otherwise.
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        found = str(error).partition("\n")[2]  # below a headline: what is missing, what is too much
        raise _wrong(path, textwrap.shorten(found, 200, placeholder=" ...")) from None
    network.fc = nn.Identity()
    return network.float().eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript archives, which are then refused
            # Tensors only: a file from elsewhere runs no code here.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file; wanted {WANTED}; save one there, or name another") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); wanted {WANTED}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        # The first sentence: the next ones tell how to run what the file says.
        raise _wrong(path, str(error).partition(". ")[0] or type(error).__name__) from None
    if not isinstance(state, dict):
        raise _wrong(path, f"a {type(state).__name__}")
    return {str(name): value for name, value in state.items()}


def _wrong(path: Path, found: str) -> DamagedInputError:
    return DamagedInputError(f"{path}: wanted {WANTED}, found something else ({found}); name another file")
