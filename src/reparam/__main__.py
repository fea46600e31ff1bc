"""Run `python -m reparam <stage>`, which is how DVC starts every stage."""

from reparam.cli import main

if __name__ == "__main__":
    main()
