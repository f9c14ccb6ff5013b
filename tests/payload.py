"""A pickle that runs something where it is loaded."""

import os
from collections.abc import Callable


class Payload:
    """Unpickled, it makes a folder of the name `mark`."""

    def __init__(self, mark: object) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.mark,)
