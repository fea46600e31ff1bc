"""The variational autoencoder with several layers of Gaussian latents."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from reparam.models.conditions import Condition, Unconditional
from reparam.models.draw import (
    Draw,
    Encoded,
    Estimator,
    Gaussian,
    Layer,
    Likelihood,
    Prior,
    gaussian_log_prob,
    halves,
    kl_to_standard_normal,
)
from reparam.models.latent import LatentModel, each_sample
from reparam.models.priors import StandardNormal
from reparam.models.vae import draw_noise, sample_gaussian


class HierarchicalVAE(LatentModel):
    """Latents z_1 (next to the image) to z_L, each given the one above: p(z_L) p(z_{L-1}|z_L) ... p(x|z_1).

    Without `features`, the posterior goes up, q(z_1|x) q(z_2|z_1) ... (Burda et al. 2016, sec. 2): encoders[l] sees the
    layer below. With them it goes down again after a deterministic way up, q(z_L|x) q(z_{L-1}|z_L, x) ...: features[l]
    carries features of the image up, encoders[l] turns them into a Gaussian of z_l, which is merged with the prior of
    z_l by their precisions (Sonderby et al. 2016, eq. 17). All but features put out mean and log variance side by side.

    `posterior` and `decode` use latents in units of their prior, (z_l - mean_l) / sigma_l, side by side. In these units
    latents are standard normal and independent, so that apps, figures and samplers need not know of layers.
    """

    def __init__(
        self,
        features: Sequence[nn.Module],
        encoders: Sequence[nn.Module],
        priors: Sequence[nn.Module],
        decoder: nn.Module,
        likelihood: Likelihood,
        sizes: Sequence[int],
        shape: tuple[int, ...],
        condition: Condition | None = None,
    ) -> None:
        super().__init__()
        self.features = nn.ModuleList(features)
        self.encoders = nn.ModuleList(encoders)
        self.priors = nn.ModuleList(priors)  # of z_1 given z_2, of z_2 given z_3, ...; the last layer's is N(0, I)
        self.decoder = decoder
        self.likelihood = likelihood
        self.sizes = list(sizes)  # D_1, ..., D_L
        self.shape = shape  # (C, H, W)
        self.condition = condition or Unconditional()  # of the networks next to the image
        self.latent_size = sum(sizes)
        self.latent_shape: tuple[int, ...] = (self.latent_size,)
        self.prior: Prior = StandardNormal(self.latent_size)  # of all layers, in units of their own priors
        self.highest = StandardNormal(self.sizes[-1])  # of z_L
        self.stochastic_layers = len(sizes)

    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return mean and log variance in units of the prior, with the latents that they depend on at their means.

        Shapes: (B, D), (B, D), where D = D_1 + ... + D_L.
        """
        means, log_variances = zip(*(_in_units(*layer) for layer in self._at_means(encoded)), strict=True)
        return torch.cat(means, -1), torch.cat(log_variances, -1)

    def sample_posterior(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw latents in units of their prior, given the sample above. Shapes: (B, C, H, W) -> (B, D)."""
        encoded = self.encode(x, labels)
        z = [layer.z for layer in self._layers(encoded, self._noise(encoded, 1), "pathwise")]  # (1, B, D_l) each
        for number, prior in enumerate(self.priors):
            mean, log_variance = halves(each_sample(prior, z[number + 1]))
            z[number] = (z[number] - mean) * (-0.5 * log_variance).exp()
        return torch.cat(z, -1)[0]

    def output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Undo the units of the priors from the top down, and decode the lowest layer."""
        *lower, above = torch.split(z, self.sizes, dim=-1)
        for prior, noise in zip(reversed(self.priors), reversed(lower), strict=True):
            mean, log_variance = halves(prior(above))
            above = mean + noise * (0.5 * log_variance).exp()
        return self.output_at(above, labels)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        """Return the image's Gaussian of the lowest layer or, for the way down, of each layer."""
        x = self.condition.on_image(x, labels)
        if not len(self.features):
            return [halves(self.encoders[0](x))]
        found = []
        for feature, encoder in zip(self.features, self.encoders, strict=True):
            x = feature(x)
            found.append(halves(encoder(x)))
        return found

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        """Sample all layers, and score `target`. Shapes: fields (samples, B)."""
        layers = self._layers(encoded, self._noise(encoded, samples), estimator)
        output = self.output_at(layers[0].z, labels)
        return replace(Draw.of(self.likelihood.log_prob(output, target), *layers), output=output)

    def layers(self, encoded: Encoded, noise: Tensor, estimator: Estimator = "pathwise") -> list[Layer]:
        return self._layers(encoded, torch.split(noise, self.sizes, dim=-1), estimator)

    def _noise(self, encoded: Encoded, samples: int) -> list[Tensor]:
        """Draw noise for each layer, in the order in which they are sampled. Shapes: (samples, B, D_l)."""
        is_down = len(self.features) > 0
        noise = [draw_noise(encoded, samples, size) for size in (reversed(self.sizes) if is_down else self.sizes)]
        return noise[::-1] if is_down else noise

    def _layers(self, encoded: Encoded, noise: Sequence[Tensor], estimator: Estimator) -> list[Layer]:
        return (self._draw_down if len(self.features) else self._draw_up)(encoded, noise, estimator)

    def _draw_up(self, encoded: Encoded, noise: Sequence[Tensor], estimator: Estimator) -> list[Layer]:
        posteriors: list[Gaussian] = [*encoded]
        drawn = [sample_gaussian(*posteriors[0], noise[0], estimator)]  # of each layer, z and log q(z)
        for encoder, its in zip(list(self.encoders)[1:], noise[1:], strict=True):
            posteriors.append(halves(each_sample(encoder, drawn[-1][0])))
            drawn.append(sample_gaussian(*posteriors[-1], its, estimator))
        layers = []
        for prior, posterior, (z, log_qz), (above, _) in zip(self.priors, posteriors, drawn, drawn[1:], strict=False):
            log_pz = gaussian_log_prob(z, *halves(each_sample(prior, above)))
            # The prior of z given the sample above, which was drawn after z: there is no closed form.
            layers.append(Layer.of(z, posterior, log_qz, log_pz))
        z, log_qz = drawn[-1]
        return [*layers, Layer.under(self.highest, z, posteriors[-1], log_qz)]

    def _draw_down(self, encoded: Encoded, noise: Sequence[Tensor], estimator: Estimator) -> list[Layer]:
        *evidence, highest = encoded
        z, log_qz = sample_gaussian(*highest, noise[-1], estimator)
        layers = [Layer.under(self.highest, z, highest, log_qz)]
        lower = zip(reversed(self.priors), reversed(evidence), reversed(noise[:-1]), strict=True)
        for prior_network, found, its in lower:
            prior = halves(each_sample(prior_network, layers[0].z))
            posterior = _merge(found, prior)
            z, log_qz = sample_gaussian(*posterior, its, estimator)
            log_pz = gaussian_log_prob(z, *prior)
            layers.insert(0, Layer.of(z, posterior, log_qz, log_pz, _kl(posterior, prior)))
        return layers

    def _at_means(self, encoded: Encoded) -> list[tuple[Gaussian, Gaussian | None]]:
        """Walk through the layers without noise; list posterior and prior of each, None for a standard normal prior."""
        if len(self.features):
            *evidence, above = encoded
            walked: list[tuple[Gaussian, Gaussian | None]] = [(above, None)]
            for prior_network, found in zip(reversed(self.priors), reversed(evidence), strict=True):
                prior = halves(prior_network(walked[0][0][0]))
                walked.insert(0, (_merge(found, prior), prior))
            return walked
        posteriors: list[Gaussian] = [*encoded]
        for encoder in list(self.encoders)[1:]:
            posteriors.append(halves(encoder(posteriors[-1][0])))
        priors = [halves(prior(above)) for prior, (above, _) in zip(self.priors, posteriors[1:], strict=True)]
        return list(zip(posteriors, [*priors, None], strict=True))


def _merge(first: Gaussian, second: Gaussian) -> Gaussian:
    """Multiply two Gaussian densities, and normalise."""
    log_variance = -torch.logaddexp(-first[1], -second[1])
    mean = sum(mean * (log_variance - other).exp() for mean, other in (first, second))
    return mean, log_variance  # type: ignore[return-value]


def _kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p), elementwise: that to a standard normal, in units of p. Units: nats."""
    return kl_to_standard_normal(*_in_units(q, p))


def _in_units(q: Gaussian, p: Gaussian | None) -> Gaussian:
    """Return q in units of p; unchanged if p is None, which means a standard normal."""
    return q if p is None else ((q[0] - p[0]) * (-0.5 * p[1]).exp(), q[1] - p[1])
