"""Variational autoencoders as a reproducible pipeline."""
