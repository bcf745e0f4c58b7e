"""Refuses every fedkern._C but the one in this folder, where it is named sitecustomize.py.

Python imports that by itself when it starts: no process of the tests runs unsanitized operators.
"""

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def refuse_others(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "import" or arguments[0] != "fedkern._C":
        return
    file = arguments[1]  # None while it is being looked for
    if file is not None and FOLDER not in Path(file).parents:
        raise ImportError(f"wanted the sanitized fedkern._C in {FOLDER}, got {file}")


sys.addaudithook(refuse_others)
