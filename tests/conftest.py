import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible():
    """The same random numbers in each test, alone or in company; one thread, the tensors being tiny."""
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
