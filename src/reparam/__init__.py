"""Variational autoencoders as a reproducible pipeline.

Where to add what. Then `make docs`; CONTRIBUTING.md has a tested example of each, with the lines that tests need:

    a likelihood, prior, network     an entry of its dict in models/likelihoods.py, priors.py, networks.py
    an objective                     an entry of OBJECTIVES in objectives.py
    an optimizer, a data set         train/optimizers.py, data/sources/registry.py
    a parameter of one of these      its class in config/, and a value in config/params.yaml
    a metric                         an entry of GROUPS in metrics.py
    a figure                         figures/, its line in evaluate/gallery.py and its Picture in report/page.py
    a recipe                         recipes/NAME.yaml, with its source, published and measured number above
    a stage                          a folder with stage.py, its files in paths.py, its section in config/ (a class,
                                     a field of Config in load.py, a value in params.yaml), its command in cli.py, its
                                     entry in dvc.yaml, and its section there among the params of `report`
    a command                        commands/
"""
