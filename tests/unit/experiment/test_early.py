"""What client TEEs are likely to need: torch, unless the app's own files plainly do without."""

from pathlib import Path

import pytest

from confed.experiment.early import early_libraries

ROOT = Path(__file__).resolve().parents[3]
APPS = ROOT / "tests" / "journey" / "apps"
NUMPY = "import numpy as np\nfrom flwr.clientapp import ClientApp\nimport confed.client\nfrom task import train\n"

FILES = {
    "NumPy, Flower and its own files": (NUMPY, False),
    "torch": ("import torch\n", True),
    "a part of torch": ("from torch.nn import Linear\n", True),
    "torch, inside a function": ("def train():\n    import torch\n", True),
    "a package that may import it": ("import hospital_models\n", True),
    "a ready task": ("from clients.tasks.digits import Network\n", True),
    "something by name": ("import importlib\n", True),
    "no Python": ("def train(:\n", True),
    "a file in another encoding": ("# coding: nowhere\n", True),
}


@pytest.mark.parametrize(("text", "torch"), FILES.values(), ids=FILES)
def test_torch_comes_early_for_an_app_that_imports(text: str, torch: bool, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("from . import client_app\n")
    (tmp_path / "client_app.py").write_text(text)
    assert early_libraries(tmp_path, "client_app:app") == (("torch", "torch._dynamo") if torch else ())


def test_it_comes_early_for_an_app_that_is_installed(tmp_path: Path) -> None:
    (tmp_path / "server_app.py").write_text(NUMPY)
    assert "torch" in early_libraries(tmp_path, "clients.tasks.digits:client_app")


@pytest.mark.parametrize(("app", "torch"), [("ordinary", True), ("linear", False), ("large", False)])
def test_of_the_apps_of_these_tests_those_with_torch_get_it(app: str, torch: bool) -> None:
    assert ("torch" in early_libraries(APPS / app, "client_app:app")) is torch
