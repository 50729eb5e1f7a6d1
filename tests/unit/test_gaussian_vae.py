"""The VAE of chapters 2 to 4, the attacks and the Lipschitz bounds, against closed forms and slower twins."""

import cvxpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from companion.analysis.attacks import lbfgs, pgd, project
from companion.analysis.lipschitz import linear_layers, product_bound
from companion.analysis.lipsdp import lipsdp
from companion.nn.gaussian_vae import GaussianVAE, conv_decoder, conv_encoder, gaussian_kl, mlp
from companion.nn.jacobians import jacobians
from companion.seeds import generator
from companion.train import Ensemble


def fully_connected(std=None, latent=3):
    heads = latent if std is not None else 2 * latent
    encoder = mlp((6, 8, heads), "tanh", generator=generator(0, "encoder"))
    return GaussianVAE(encoder, mlp((latent, 8, 6), "tanh", generator=generator(0, "decoder")), std)


def test_fixed_std_is_the_constant_and_a_learned_one_is_positive():
    x = torch.randn(5, 6, generator=generator(0, "x"))
    mean, std = fully_connected(0.3).encode(x)
    assert mean.shape == std.shape == (5, 3)
    torch.testing.assert_close(std, torch.full((5, 3), 0.3))
    mean, std = fully_connected().encode(x)
    assert mean.shape == std.shape == (5, 3)
    assert (std > 0).all()


def test_members_of_an_ensemble_keep_their_own_std():
    ensemble = Ensemble([fully_connected(0.1), fully_connected(0.7)])
    _, std = ensemble.call(lambda vae, x: vae.encode(x), torch.zeros(2, 4, 6))
    torch.testing.assert_close(std[:, 0, 0], torch.tensor([0.1, 0.7]))


def test_kl_agrees_with_torch_distributions_and_its_fixed_std_gradient_is_the_mean():
    mean = torch.randn(4, 3, generator=generator(0, "mean")).requires_grad_(True)
    std = torch.rand(4, 3, generator=generator(0, "std")) + 0.1
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    torch.testing.assert_close(gaussian_kl(mean, std), kl_divergence(Independent(Normal(mean, std), 1), prior))
    (gradient,) = torch.autograd.grad(gaussian_kl(mean, std).sum(), mean)
    torch.testing.assert_close(gradient, mean)


def test_convolutional_networks_map_flat_images_and_refuse_odd_sides():
    encoder = conv_encoder((1, 8, 8), 4, (3, 5), 7, generator=generator(0, "encoder"))
    decoder = conv_decoder((1, 8, 8), 4, (3, 5), 7, generator=generator(0, "decoder"))
    code = encoder(torch.rand(6, 64))
    assert code.shape == (6, 4)
    assert decoder(code).shape == (6, 64)
    with pytest.raises(ValueError, match="multiples of 4"):
        conv_encoder((1, 10, 8), 4, (3, 5), 7, generator=generator(0, "encoder"))


# --- attacks ---


@given(seed=st.integers(0, 200), radius=st.floats(0.05, 3))
def test_projection_is_feasible_and_no_feasible_point_is_nearer(seed, radius):
    stream = generator(seed, "projection")
    x = torch.rand(12, generator=stream, dtype=torch.float64)
    v = 2 * torch.randn(12, generator=stream, dtype=torch.float64)
    nearest = project(v, radius, -x, 1 - x)
    assert nearest.norm() <= radius + 1e-9
    assert ((x + nearest >= 0) & (x + nearest <= 1)).all()
    # The projection on a convex set is the one point with (v − p)·(q − p) <= 0 for every feasible q.
    others = project(torch.randn(300, 12, generator=stream, dtype=torch.float64), radius) + 0
    others = project(others, radius, (-x).expand(300, 12), (1 - x).expand(300, 12))
    assert ((others - nearest) @ (v - nearest)).max() <= 1e-6
    # The popular short cut, ball first and then box, is feasible too but farther (or the same).
    short_cut = project(v, radius).clamp(-x, 1 - x)
    assert (v - nearest).norm() <= (v - short_cut).norm() + 1e-9


def test_pgd_finds_the_exact_worst_case_of_a_linear_map():
    a = torch.randn(5, 7, generator=generator(0, "map"))
    x = torch.randn(3, 7, generator=generator(0, "x"))
    radii = torch.tensor([0.5, 1.0, 2.0])
    attack = pgd(lambda v: ((v - x) @ a.T).norm(dim=-1), x, radii, steps=60, generator=generator(0, "attack"))
    exact = torch.linalg.matrix_norm(a, 2) * radii
    torch.testing.assert_close(attack.value, exact, rtol=0.01, atol=0)
    assert (attack.delta.norm(dim=-1) <= radii * (1 + 1e-5)).all()


def test_pgd_keeps_each_examples_best_step_and_restarts_never_hurt():
    def objective(v):
        return (3 * v).sin().sum(-1)

    x = torch.randn(20, 4, generator=generator(0, "x"))
    one = pgd(objective, x, 2.0, steps=8, step=0.5, generator=generator(0, "attack"))
    many = pgd(objective, x, 2.0, steps=8, step=0.5, restarts=4, generator=generator(0, "attack"))
    torch.testing.assert_close(objective(x + one.delta), one.value)
    assert (many.value >= one.value).all()
    assert (many.value > one.value).any()


def test_lbfgs_stays_in_ball_and_box_and_matches_pgd():
    a = torch.randn(5, 7, generator=generator(0, "map"))
    x = torch.rand(3, 7, generator=generator(0, "x"))
    both = pgd(
        lambda v: ((v - x) @ a.T).norm(dim=-1), x, 0.3, steps=80, restarts=3, box=(0, 1), generator=generator(0, "pgd")
    )
    other = lbfgs(
        lambda v, row: (a @ (v - x[row])).norm(), x, 0.3, box=(0, 1), restarts=3, generator=generator(0, "lbfgs")
    )
    assert (other.delta.norm(dim=-1) <= 0.3 * (1 + 1e-5)).all()
    assert ((x + other.delta >= -1e-6) & (x + other.delta <= 1 + 1e-6)).all()
    torch.testing.assert_close(other.value, both.value, rtol=0.05, atol=0)


# --- Lipschitz constants ---


def test_jacobians_agree_with_autograd_in_both_modes():
    for sizes in ((3, 5, 7), (7, 5, 3)):
        net = mlp(sizes, "tanh", generator=generator(0, "net")).requires_grad_(False)
        points = torch.randn(4, sizes[0], generator=generator(0, "points"))
        slow = torch.stack([torch.autograd.functional.jacobian(net, point) for point in points])
        torch.testing.assert_close(jacobians(net, points, chunk=3), slow)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_lipsdp_lies_between_the_sampled_and_the_product_bound(activation):
    net = mlp((4, 10, 10, 6), activation, generator=generator(0, "net", activation)).requires_grad_(False)
    points = 3 * torch.randn(3000, 4, generator=generator(0, "points"))
    sampled = torch.linalg.matrix_norm(jacobians(net, points), 2).max()
    assert sampled <= lipsdp(net) <= product_bound(net) * (1 + 1e-6)
    assert lipsdp(net) < 0.8 * product_bound(net)


def test_lipsdp_is_the_solvers_own_optimum_made_safe():
    net = mlp((3, 6, 4), "relu", generator=generator(0, "net")).requires_grad_(False)
    (first, last), _ = linear_layers(net)
    t, rho = cvxpy.Variable(6, nonneg=True), cvxpy.Variable()
    # One hidden layer, written out: the textbook's matrix inequality.
    link = cvxpy.diag(t) @ first.numpy()
    corner = 2 * cvxpy.diag(t) - (last.T @ last).numpy()
    matrix = cvxpy.bmat([[rho * torch.eye(3).numpy(), -link.T], [-link, corner]])
    cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0]).solve(solver=cvxpy.CLARABEL)
    assert lipsdp(net) == pytest.approx(float(rho.value) ** 0.5, rel=1e-3)


def test_one_linear_layer_has_its_spectral_norm_and_unknown_layers_are_refused():
    net = nn.Sequential(nn.Linear(3, 4))
    norm = float(torch.linalg.matrix_norm(net[0].weight.detach().double(), 2))
    assert lipsdp(net) == pytest.approx(norm)
    assert product_bound(net) == pytest.approx(norm)
    with pytest.raises(ValueError, match="not Softmax"):
        product_bound(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)))
