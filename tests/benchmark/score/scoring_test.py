from pathlib import Path

import numpy as np
import pytest

from direct_hifimamba.benchmark.score.scoring import Volume, score_volumes
from direct_hifimamba.data.formats.hdf5 import write_cmrxrecon, write_view, write_volume
from tests.data.lookalikes import centred_fft, magnitude, measure


@pytest.mark.parametrize("coils", [0, 3])
def test_scores_do_not_depend_on_the_form_of_the_file(tmp_path: Path, coils: int) -> None:
    images = measure(magnitude(0, 2, 96, 64), 3, 0)
    for name in ("volumes", "test"):
        (tmp_path / name).mkdir()
    volume, view, radial = (tmp_path / name for name in ("volumes/a.h5", "test/a.h5", "test/a.mat"))
    write_volume(volume, centred_fft(images if coils else images[:, 0]), {})
    columns = np.arange(64) % 3 == 0
    write_view(view, volume, columns, {})
    write_cmrxrecon(radial, volume, np.tile(columns, (96, 1)), {})
    found = score_volumes([Volume("4x", path, None, None, True) for path in (view, radial)], 1, "test")
    assert found[0] == found[1]
    write_cmrxrecon(tmp_path / "b.mat", volume, np.tile(np.arange(96)[:, None] % 3 == 0, (1, 64)), {})
    assert score_volumes([Volume("4x", tmp_path / "b.mat", None, None, True)], 1, "test")[0] != found[0]
