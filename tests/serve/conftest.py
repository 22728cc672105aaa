import engines
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _known_classes(request):
    if not request.config.getoption("--whole"):
        engines.known_classes()


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="let vLLM look at model classes as it does elsewhere")
