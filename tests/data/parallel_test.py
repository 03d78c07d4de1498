import torch

from direct_hifimamba.data.parallel import map_files


def test_the_number_of_threads_is_restored() -> None:
    torch.set_num_threads(2)
    assert list(map_files(lambda _: torch.get_num_threads(), range(2), 1, "count")) == [1, 1]
    assert torch.get_num_threads() == 2
