"""Path, time shift, loss and solvers against the reference implementation of [RAE]."""

import math

import pytest
import torch

from driftrae_cli.flow.guidance import autoguidance, classifier_free
from driftrae_cli.flow.path import (
    interpolate,
    shift_for,
    shift_time,
    velocity_loss,
    velocity_target,
)
from driftrae_cli.flow.solvers import solve, time_grid

_SHIFT = math.sqrt(48)
_RUNS = {  # method, grid points, shift
    "euler50_sqrt48": ("euler", 50, _SHIFT),
    "euler10_s1": ("euler", 10, 1.0),
    "euler10_s3": ("euler", 10, 3.0),
    "euler10_sqrt48": ("euler", 10, _SHIFT),
    "euler10_sqrt192": ("euler", 10, math.sqrt(192)),
    "euler2_sqrt48": ("euler", 2, _SHIFT),
    "euler250_sqrt48": ("euler", 250, _SHIFT),
    "heun2_10_sqrt48": ("heun", 10, _SHIFT),
}


@pytest.fixture(scope="module")
def io(golden):
    return golden("sampler_io")


def _trajectory(io, net, run):
    """All states of a run, and the times at which the network was called."""
    method, points, shift = _RUNS[run]
    calls = []

    def velocity(x, t_B):
        assert t_B.shape == (len(x),) and t_B.eq(t_B[0]).all()
        calls.append(t_B[0])
        return net(x, t_B, io["y"])

    states = solve(velocity, io["noise"], time_grid(points, shift), method, keep=True)
    return states, torch.stack(calls)


@pytest.mark.parametrize("run", _RUNS)
def test_grid_calls_and_sample(io, ditdh, close, run):
    _, points, shift = _RUNS[run]
    close(time_grid(points, shift), io[f"{run}/grid"], 1e-6)
    states, calls = _trajectory(io, ditdh("main"), run)
    close(calls, io[f"{run}/t_calls"], 1e-6)
    close(states[-1], io[f"{run}/final"], 1e-4)


def test_states_on_the_way(io, ditdh, close):
    fifty, _ = _trajectory(io, ditdh("main"), "euler50_sqrt48")
    close(fifty[1], io["euler50_sqrt48/step1"], 1e-4)
    close(fifty[25], io["euler50_sqrt48/step25"], 1e-4)
    ten, _ = _trajectory(io, ditdh("main"), "euler10_sqrt48")
    close(ten, io["euler10_sqrt48/trajectory"], 1e-4)


@pytest.mark.parametrize(
    ("run", "scale", "interval"),
    [("euler50_cfg1p5", 1.5, (0.0, 1.0)), ("euler50_cfg3_0p1_0p9", 3.0, (0.1, 0.9))],
)
def test_classifier_free_run(io, ditdh, close, run, scale, interval):
    y = io["guided/y2"]
    velocity = classifier_free(ditdh("main"), y[:2], int(y[-1]), scale, interval)
    sample = solve(velocity, io["guided/noise2"][:2], time_grid(50, _SHIFT))
    close(sample, io[f"{run}/kept"], 3e-4)


def test_autoguided_run(io, ditdh, close):
    main, guide, y = ditdh("main"), ditdh("guide"), io["guided/y2"]
    velocity = autoguidance(lambda x, t: main(x, t, y), lambda x, t: guide(x, t, y), 1.42)
    sample = solve(velocity, io["guided/noise2"], time_grid(50, _SHIFT))
    close(sample, io["euler50_ag1p42/final"], 3e-4)
    close(sample[:2], io["euler50_ag1p42/kept"], 3e-4)


def test_path(io, close):
    y, eps = io["path/data"], io["path/noise"]
    close(interpolate(y, eps, io["path/t"]), io["path/xt"], 1e-6)
    close(velocity_target(y, eps), io["path/velocity"], 1e-6)


def test_time_shift(io, close):
    assert shift_for(768 * 16 * 16) == pytest.approx(_SHIFT)
    assert shift_for(64 * 4 * 4) == 1
    close(shift_time(io["train_time/u"], _SHIFT), io["train_time/shifted"], 1e-6)


def test_loss(io, ditdh, close):
    net, y = ditdh("main"), io["loss/y"]
    close(net(io["path/xt"], io["path/t"], y), io["loss/pred"], 5e-5)
    loss_B = velocity_loss(
        lambda x, t: net(x, t, y), io["path/data"], io["path/noise"], io["path/t"]
    )
    close(loss_B, io["loss/per_sample"], 5e-5)
