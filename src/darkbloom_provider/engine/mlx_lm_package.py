"""mlx-lm without what the engine does not use of it: transformers, until a tokenizer needs it.

`import mlx_lm`, which every import of one of its modules implies, runs its command line's modules,
and `mlx_lm.utils`, which loads models, imports the module that loads tokenizers. Both import
transformers, which takes 20 MB from an idle daemon for as long as it lives. Here the package is
there at once, but runs its `__init__` only when it is asked for a name, and models can be loaded
before the module for tokenizers has run. Nothing is taken away: whoever asks gets the real thing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

PACKAGE: Final = "mlx_lm"
_TOKENIZERS: Final = f"{PACKAGE}.tokenizer_utils"


def prepare() -> None:
    """Make the package's models and their loader importable; once a process, before their import.

    Raises:
        ImportError: mlx-lm is not installed.
    """
    if PACKAGE in sys.modules:  # somebody has imported it whole
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{PACKAGE} is not installed", name=PACKAGE)
    sys.modules[PACKAGE] = _deferred(spec)
    sys.modules[_TOKENIZERS] = _stand_in()
    try:
        importlib.import_module(f"{PACKAGE}.utils")
    except BaseException:
        del sys.modules[PACKAGE]
        raise
    finally:
        del sys.modules[_TOKENIZERS]


def _deferred(spec: ModuleSpec) -> ModuleType:
    """The package, whose own code runs when it is asked for a name that it does not have yet.

    `importlib.util.LazyLoader` would not do: it runs the code as soon as a submodule is imported.
    """
    package = importlib.util.module_from_spec(spec)

    def missing(name: str) -> Any:  # noqa: ANN401 - whatever the package has
        if name.startswith("_") or "__getattr__" not in vars(package):
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}", name=name)
        del package.__getattr__
        if spec.loader is not None:
            spec.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = missing  # type: ignore[method-assign]
    return package


def _stand_in() -> ModuleType:
    """What `mlx_lm.utils` takes from the module for tokenizers while it is imported itself."""

    class TokenizerWrapper:
        """Stands in annotations."""

    def load(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - those of the real one
        return importlib.import_module(_TOKENIZERS).load(*arguments, **named)

    module = ModuleType(_TOKENIZERS)
    vars(module).update(TokenizerWrapper=TokenizerWrapper, load=load)
    return module
