import numpy as np
import pytest

from direct_hifimamba.data.simulation import coils


def polygon(radius: float, num_vertices: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(num_vertices) / num_vertices
    return radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)[None]


def points_around(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform((-20, -20, 40), (20, 20, 80), (5, 3))


def test_field_on_the_axis_of_a_circular_loop_is_the_analytic_one():
    radius, height = 40.0, np.array([-70.0, 0.0, 25.0, 100.0])
    points = np.stack([0 * height, 0 * height, height], axis=1)
    field = coils.magnetic_field(polygon(radius, 720), points)[0]
    expected = 2 * np.pi * radius**2 / (radius**2 + height**2) ** 1.5  # B = mu_0 / (4 pi) times this
    np.testing.assert_allclose(field[2], expected, rtol=1e-4)
    np.testing.assert_allclose(field[:2], 0, atol=1e-12)


def test_field_far_from_a_tilted_loop_is_that_of_a_dipole():
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    moment = np.pi * 1.0**2 * rotation[:, 2]
    points = 500 * rng.normal(size=(7, 3))
    distance = np.linalg.norm(points, axis=1, keepdims=True)
    direction = points / distance
    expected = (3 * (direction @ moment)[:, None] * direction - moment) / distance**3
    field = coils.magnetic_field(polygon(1.0, 720) @ rotation.T, points)[0].T
    assert np.linalg.norm(field - expected) < 1e-3 * np.linalg.norm(expected)


def test_field_is_the_curl_of_the_vector_potential():
    rng = np.random.default_rng(1)
    vertices, points = polygon(40, 12) + rng.normal(0, 3, (1, 12, 3)), points_around(rng)
    step = 1e-3
    derivative = np.stack(
        [
            coils.vector_potential(vertices, points + step * axis, 0)[0]
            - coils.vector_potential(vertices, points - step * axis, 0)[0]
            for axis in np.eye(3)
        ]
    ) / (2 * step)  # (axis, component, point)
    curl = np.stack([derivative[i, j] - derivative[j, i] for i, j in ((1, 2), (2, 0), (0, 1))])
    np.testing.assert_allclose(coils.magnetic_field(vertices, points)[0], curl, rtol=1e-5, atol=1e-9)


def test_sensitivity_is_the_transverse_field():
    rng = np.random.default_rng(2)
    vertices, points = polygon(40, 12) + rng.normal(0, 3, (1, 12, 3)), points_around(rng)
    x, y, _ = coils.magnetic_field(vertices, points, coils.WIRE_RADIUS)[0]
    np.testing.assert_array_equal(coils.receive_sensitivity(vertices, points)[0], x - 1j * y)


@pytest.mark.parametrize("layout", coils.LAYOUTS)
@pytest.mark.parametrize("num_coils", [1, 4, 7, 32])
def test_loops_lie_around_the_object(layout, num_coils):
    semi_axes = np.array([75.0, 95.0, 90.0])
    vertices = coils.draw_array(num_coils, semi_axes, np.random.default_rng(3), layout)
    assert vertices.shape == (num_coils, coils.NUM_VERTICES, 3)
    centres = vertices.mean(1)
    assert (np.linalg.norm(centres / semi_axes, axis=1) > 1).all()
    apart = np.linalg.norm(centres[:, None] - centres, axis=2) + 1e3 * np.eye(num_coils)
    assert apart.min() > 5


def test_noise_is_most_alike_in_coils_that_overlap():
    semi_axes = np.array([75.0, 95.0, 90.0])
    rng = np.random.default_rng(4)
    vertices = coils.draw_array(8, semi_axes, rng, "ring")
    points = rng.uniform(-1, 1, (2000, 3))
    points = points[np.linalg.norm(points, axis=1) < 1] * semi_axes
    covariance = coils.noise_covariance(vertices, points, 0.2)
    np.testing.assert_allclose(np.trace(covariance), 8)
    assert np.linalg.eigvalsh(covariance).min() > 0
    scale = np.sqrt(np.diag(covariance))
    correlation = np.abs(covariance / scale / scale[:, None])
    neighbours = [correlation[i, (i + 1) % 8] for i in range(8)]
    second = [correlation[i, (i + 2) % 8] for i in range(8)]
    assert np.mean(neighbours) > 1.5 * np.mean(second)
    assert 0.05 < np.mean(neighbours) < 0.8
