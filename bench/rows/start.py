"""How long a user waits for a mount."""

from lib.bench import MANY
from lib.results import Row, at_most

MILLISECONDS_AT_MOST = 300


def until_ready(bench):
    """The whole command, from its start to its end: it returns when the mount answers."""
    values = []
    for _ in range(max(bench.runs, 3)):
        with bench.mount_native(MANY) as mount:
            values.append(mount.seconds_until_ready * 1000)
    return [at_most("millrace mount file://…", "ms", values, MILLISECONDS_AT_MOST)]


ROWS = [Row("mount until ready", until_ready)]
