"""Frechet distance against closed forms, and the feature network that comes by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from tests.tokenizer.formulas import pattern
from tokenizer import (
    DtypeError,
    MissingNetwork,
    NonFiniteError,
    ShapeError,
    UnreadableCheckpoint,
)
from tokenizer.metrics.fvd import VideoFeatures, frechet_distance


def whitened(num_samples: int, num_features: int) -> Tensor:
    """Samples with the mean 0 and the covariance 1, but for rounding of float64."""
    x = torch.randn(num_samples, num_features, dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0)).Q * (num_samples - 1) ** 0.5


def rotated(deviations: Tensor, num_samples: int = 200) -> Tensor:
    return whitened(num_samples, len(deviations)) * deviations


def test_one_feature_has_a_textbook_formula() -> None:
    a, b = 3 * whitened(50, 1) + 1, 5 * whitened(80, 1) - 1
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 5) ** 2)


def test_independent_features_add_up() -> None:
    deviations_a, deviations_b = torch.rand(2, 12, dtype=torch.float64)
    shift = torch.randn(12, dtype=torch.float64)
    expected = shift.square().sum() + (deviations_a - deviations_b).square().sum()
    a, b = rotated(deviations_a) + shift, rotated(deviations_b)
    assert frechet_distance(a, b) == pytest.approx(float(expected))


def test_covariances_that_do_not_commute_have_a_closed_form_in_two_dimensions() -> None:
    """tr((AB)^1/2)^2 = tr(AB) + 2 det(AB)^1/2 for 2 x 2."""
    roots = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [-3.0, 0.5]]]).double()
    a, b = (whitened(60, 2) @ root.T for root in roots)
    S_a, S_b = (root @ root.T for root in roots)
    product = S_a @ S_b
    root_trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(S_a.trace() + S_b.trace() - 2 * root_trace)
    assert expected > 1
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_two_samples_each_have_a_closed_form_in_any_dimension() -> None:
    """Covariances of rank one, uu^T and vv^T: |u|^2 + |v|^2 - 2 |<u, v>|."""
    u, v = torch.randn(2, 400, dtype=torch.float64)
    a, b = torch.stack((u, -u)) / 2**0.5, torch.stack((v, -v)) / 2**0.5
    expected = u.square().sum() + v.square().sum() - 2 * (u @ v).abs()
    assert frechet_distance(a, b) == pytest.approx(float(expected))


@pytest.mark.parametrize("num_samples", [30, 500])
def test_it_equals_the_root_of_the_matrix_by_scipy(num_samples: int) -> None:
    mixing = torch.randn(64, 64, dtype=torch.float64)
    a = torch.randn(num_samples, 64, dtype=torch.float64) @ mixing
    b = torch.randn(num_samples + 7, 64, dtype=torch.float64) + 1
    S_a, S_b = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(S_a @ S_b).real
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = float(mean) + np.trace(S_a + S_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_samples", [30, 500])
def test_it_equals_the_eigenvalues_of_the_product(num_samples: int) -> None:
    a = torch.randn(num_samples, 64, dtype=torch.float64) @ torch.randn(64, 64).double()
    b = torch.randn(num_samples + 7, 64, dtype=torch.float64) + 1
    S_a, S_b = (x.T.cov() for x in (a, b))
    root_trace = torch.linalg.eigvals(S_a @ S_b).real.clamp(min=0).sqrt().sum()
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = float(mean + S_a.trace() + S_b.trace() - 2 * root_trace)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_a_set_has_no_distance_from_itself_and_order_does_not_matter() -> None:
    a, b = torch.randn(40, 16), torch.randn(30, 16) * 2
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a) >= 0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_features_that_are_no_two_tables_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[5, 3\] and \[5, 4\]"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ShapeError, match="at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(DtypeError, match="int64"):
        frechet_distance(torch.zeros(5, 3).long(), torch.zeros(5, 3))
    with pytest.raises(NonFiniteError, match="NaN"):
        frechet_distance(torch.full((5, 3), torch.nan), torch.zeros(5, 3))


class Probe(nn.Module):
    """Takes what I3D takes; gives mean, lowest value and sizes of what it was given."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        if rescale or resize or not return_features:
            raise ValueError("videos are prepared by the caller")
        sizes = torch.tensor(x.shape[2:], dtype=torch.float32).expand(len(x), 3)
        flat = x.flatten(1)
        return torch.cat((flat.mean(dim=1, keepdim=True), flat[:, :1], sizes), dim=1)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(Probe()).save(str(tmp_path / "probe.pt"))
    return tmp_path / "probe.pt"


def test_videos_reach_the_network_as_it_was_trained(probe: Path) -> None:
    """10 frames of 224 x 224 in [-1, 1], the centre of wider ones."""
    x_BCTHW = torch.full((2, 3, 10, 32, 64), 0.5)
    x_BCTHW[1] = 4
    x_BCTHW[..., :12] = x_BCTHW[..., -12:] = -1
    features = VideoFeatures(probe)(x_BCTHW)
    assert features.tolist() == [
        pytest.approx([0.5, 0.5, 10, 224, 224]),
        pytest.approx([1, 1, 10, 224, 224]),
    ]


def test_videos_keep_their_frames_apart(probe: Path) -> None:
    x_BCTHW = pattern(3, 10, 24, 24)
    network = VideoFeatures(probe)
    together, alone = network(x_BCTHW), [network(x_BCTHW[at : at + 1]) for at in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_without_a_network_it_says_what_to_fetch() -> None:
    with pytest.raises(MissingNetwork, match=r"i3d_torchscript\.pt.*nothing else stands in"):
        VideoFeatures(None)


class Foreign(nn.Module):
    """A network that knows nothing of I3D's arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


def test_a_network_of_another_kind_is_named_with_what_it_must_be(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(Foreign()).save(str(tmp_path / "foreign.pt"))
    network = VideoFeatures(tmp_path / "foreign.pt")
    with pytest.raises(UnreadableCheckpoint) as said:
        network(torch.zeros(1, 3, 10, 32, 32))
    line = str(said.value)
    assert f"{tmp_path}/foreign.pt: as a network of FVD it fails (" in line
    assert "rescale" in line
    assert "i3d_torchscript.pt" in line
    assert "\n" not in line


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match="no such file"):
        VideoFeatures(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UnreadableCheckpoint, match="no TorchScript"):
        VideoFeatures(tmp_path / "text.pt")
