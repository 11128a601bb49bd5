"""``python -m broker.cli``: the command ``trifid`` without its entry point."""

from broker.cli import main

main()
