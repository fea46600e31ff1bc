"""Variational autoencoders as a reproducible pipeline.

Where to add what; CONTRIBUTING.md has a tested example of each:

    a likelihood, prior, network     an entry of its dict in models/likelihoods.py, priors.py, networks.py
    an objective                     an entry of OBJECTIVES in objectives.py
    an optimizer, a data set         train/optimizers.py, data/sources/registry.py
    a parameter of one of these      its class in config/, and a value in config/params.yaml
    a metric                         an entry of GROUPS in metrics.py
    a figure                         figures/, and its line in evaluate/gallery.py
    a stage                          a folder with stage.py, its section in config/, its command in cli.py, dvc.yaml
    a command                        commands/
"""
