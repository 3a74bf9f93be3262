"""DiT-DH against the reference implementation of [RAE]."""

import pytest

from driftrae_cli.flow.guidance import autoguidance, classifier_free, extrapolate

_CASES = {
    "s1p5_full": (1.5, (0.0, 1.0)),
    "s4_0p25_0p75": (4.0, (0.25, 0.75)),
    "s2_0_0p5": (2.0, (0.0, 0.5)),
}
_EMBEDDINGS = ("s_embedder.proj.weight", "s_embedder.proj.bias", "x_embedder.proj.weight")


@pytest.fixture(scope="module")
def io(golden):
    return golden("ditdh_io")


@pytest.mark.parametrize("which", ["main", "guide"])
def test_velocity(ditdh, io, close, which):
    close(ditdh(which)(io["x"], io["t"], io["y"]), io[f"out/{which}"], 5e-5)


@pytest.mark.parametrize(
    ("module", "name", "tolerance"),
    [
        ("t_embedder", "t_emb", 2e-5),
        ("y_embedder", "y_emb", 2e-5),
        ("blocks.0", "enc_block0_out", 5e-5),
        ("blocks.2", "enc_last_out", 5e-5),
        ("s_projector", "s_after_projector", 5e-5),
        ("blocks.3", "dec_block0_out", 5e-5),
    ],
)
def test_inside(ditdh, io, close, module, name, tolerance):
    net, seen = ditdh("main"), []
    net.get_submodule(module).register_forward_hook(lambda _m, _i, out: seen.append(out))
    net(io["x"], io["t"], io["y"])
    close(seen[0], io[f"mid/{name}"], tolerance)


def test_norm_epsilon(ditdh, io, close):
    net = ditdh("main", scaled=("pos_embed", *_EMBEDDINGS, "x_embedder.proj.bias"))
    close(net(io["x"], io["t"], io["y"]), io["small_scale/out"], 5e-5)


@pytest.mark.parametrize("which", ["main", "guide"])
def test_fresh_position_table(fresh_ditdh, io, close, which):
    close(fresh_ditdh(which).pos_embed, io[f"init/{which}/pos_embed"], 1e-6)


def test_fresh_rotary_tables(fresh_ditdh, golden, close):
    net, state = fresh_ditdh("main"), golden("ditdh_main_state")
    for name, buffer in net.named_buffers():
        close(buffer, state[name], 1e-6)


@pytest.mark.parametrize("case", _CASES)
def test_classifier_free_guidance(ditdh, io, close, case):
    scale, interval = _CASES[case]
    half = len(io["cfg/x"]) // 2
    x, t, y = io["cfg/x"][:half], io["cfg/t"][:half], io["cfg/y"]
    guided = classifier_free(ditdh("main"), y[:half], int(y[-1]), scale, interval)(x, t)
    expected = io[f"cfg/out/{case}"]
    close(guided, expected[:half], 1.5e-4)
    close(guided, expected[half:], 1.5e-4)  # the reference returns the result twice


@pytest.mark.parametrize("case", _CASES)
def test_autoguidance(ditdh, io, close, case):
    scale, interval = _CASES[case]
    main, guide, y = ditdh("main"), ditdh("guide"), io["cfg/y"]
    guided = autoguidance(lambda x, t: main(x, t, y), lambda x, t: guide(x, t, y), scale, interval)
    close(guided(io["cfg/x"], io["cfg/t"]), io[f"ag/out/{case}"], 1.5e-4)


def test_interval_includes_both_ends(io):
    strong, weak = io["x"][:3], io["x"][3:6]
    t_B = io["t"].new_tensor([0.25, 0.75, 0.76])
    guided = extrapolate(strong, weak, t_B, 2.0, (0.25, 0.75))
    assert guided[:2].equal(weak[:2] + 2.0 * (strong - weak)[:2])
    assert guided[2].equal(strong[2])
