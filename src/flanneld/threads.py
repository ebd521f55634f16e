"""What becomes of the daemon when one of its threads ends by a fault: it ends as well, and systemd starts it again.

Without that a part of it would stand still for ever, and nobody would know.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Callable

from flanneld.log import logger


def guard_threads(lost: Callable[[str], None]) -> None:
    """Have `lost` called with the reason, in the thread in question, whenever a thread ends by an exception.

    The log gets one line that says where it was raised, and the traceback from -v=1 on.
    """

    def failed(args: threading.ExceptHookArgs) -> None:
        if issubclass(args.exc_type, SystemExit):
            return  # as Python does: the thread was to end
        name = args.thread.name if args.thread is not None else "unknown"
        what = f"{args.exc_type.__name__}: {args.exc_value}"
        place = args.exc_traceback
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place is not None else ""
        logger.error("the thread %s has failed%s: %s", name, where, what)
        logger.debug("how the thread %s came to that", name, exc_info=args.exc_value)
        lost(f"a part of the daemon has failed: {name}: {what}")

    threading.excepthook = failed
