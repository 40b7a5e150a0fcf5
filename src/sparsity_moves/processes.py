"""Processes that work for another one, and end with it."""

from __future__ import annotations

import os
import threading
import time


def end_with(process: int) -> None:
    """From now on this process ends once another has, however that ended: nobody waits for its work.

    Args:
        process: this one's parent, or any other of the same user.
    """
    is_parent = os.getppid() == process

    def there() -> bool:
        if is_parent:  # also where nobody has asked yet how it ended
            return os.getppid() == process
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        return True

    def watch() -> None:
        while there():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
