"""Start the command line: `reparam <stage>`, or `python -m reparam <stage>`, which is how DVC starts every stage."""

import signal


def main() -> None:
    """Run the command line."""
    # Ctrl-C ends the process at once while libraries are imported, which might swallow a KeyboardInterrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from reparam.cli import main as run

    run()


if __name__ == "__main__":
    main()
