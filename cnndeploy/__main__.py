"""``python -m cnndeploy`` is the command ``cnndeploy``."""

from cnndeploy.cli import run

run()
