"""Golden cases of rectified flow: times, noising, losses, sampling, and whole training steps."""

import functools
import types
from unittest import mock

import golden_data
import golden_stdit
import golden_utils
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vidgen.diffusion import flow, prompts
from vidgen.training import optim, train_state

UNUSED = {"ar", "num_frames"}  # handed to the original's model, which reads neither


def check_flow(case):
    assert case.config["num_timesteps"] == 1000
    for variant in case.variants:
        check = next((f for name, f in _CHECKS.items() if variant.startswith(name)), None)
        assert check, f"{case.name} has the variant {variant}, which is unknown here"
        case.inputs(variant).read |= UNUSED & set(case.inputs(variant))
        with jax.default_matmul_precision("highest"):
            check(case, variant)


def _check_noising(case, variant):
    x, noise, t = (jnp.asarray(case.inputs(variant)[k]) for k in ("x", "noise", "t"))
    case.check(f"{variant}/x_t", flow.interpolate(x, noise, t / 1000)[0])


def _drawn(name, values, **settings):
    """Times of `flow.sample_t` with `values` in place of random numbers."""
    method = {"uniform": "uniform", "normal": "logit-normal"}[name]
    with mock.patch.object(jax.random, name, lambda *args, **kwargs: jnp.asarray(values)):
        return flow.sample_t(jax.random.key(0), len(values), method=method, **settings)


def _check_draws(case, variant):
    inputs = case.inputs(variant)
    got = {"uniform": _drawn("uniform", inputs["uniform"])}
    for i, settings in enumerate(case.config["timestep_draw_logit_normal"]):
        got[f"logit_normal_{i}"] = _drawn("normal", inputs["normal"], **settings)
    got |= {
        f"{name}_warped": flow.shift_t(t, golden_data.exact_ratio(inputs))
        for name, t in got.items()
    }
    case.check_all(variant, {name: 1000 * t for name, t in got.items()})


def _check_loss(case, variant):
    graph, params, tensors = golden_stdit.make_model(case.config["model"], case.state_dict())
    inputs = case.inputs(variant)
    patch = case.config["model"]["patch_size"][1:]
    cut = lambda x: jnp.asarray(golden_stdit.tokens(x, 0, patch))
    x, noise, real = cut(inputs["x"]), cut(inputs["noise"]), cut(np.ones_like(inputs["x"]))
    settings = golden_stdit.context(inputs, len(x), inputs["x"], config=case.config["model"])
    text, mask = settings.pop("text_BLE"), settings["mask_Bt"]
    if "drop_uniform" in inputs:
        drop = inputs["drop_uniform"] < case.config["model"]["class_dropout_prob"]
        settings["drop_text_B"] = jnp.asarray(drop)
    if "t" in inputs:
        t_B = jnp.asarray(inputs["t"]) / 1000
    elif "uniform" in inputs:
        t_B = _drawn("uniform", inputs["uniform"])
    else:
        t_B = flow.shift_t(_drawn("normal", inputs["normal"]), golden_data.exact_ratio(inputs))
    noisy, velocity = flow.interpolate(x, noise, t_B, mask)

    @golden_utils.quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        model = nnx.merge(graph, params)
        prediction = model(noisy, t_B, text, **settings)
        loss_B = flow.loss(model.velocity(prediction), velocity, real, mask)
        return loss_B.mean(), (loss_B, prediction)

    (loss, (loss_B, prediction)), grads = run(params)
    got = {"t": 1000 * t_B, "x_t": golden_stdit.latent(noisy, inputs["x"], patch)}
    got |= {"loss": loss_B, "loss_mean": np.reshape(loss, 1)}
    got["model_output"] = golden_stdit.latent(prediction, inputs["x"], patch)
    got |= {f"grad/{t.name}": golden_stdit.value(grads, tensors, t.name) for t in tensors}
    case.check_all(variant, got)


def _start(case, variant):
    """Start of sampling and the freedom of its frames, with the references placed."""
    inputs = case.inputs(variant)
    noise = inputs["noise"]
    if "reference_0" not in inputs:
        return noise, None
    last = lambda x: np.moveaxis(x, 0, -1)
    references = [[last(inputs[f"reference_{i}"])] for i in range(len(noise))]
    strategies = case.config["sample_mask_strategy"]
    noise_Bthwc = np.asarray(golden_utils.channels_last(noise))
    start, edit_Bt = prompts.place_references(noise_Bthwc, references, strategies)
    return golden_utils.channels_first(start), edit_Bt


def _check_sampling(case, variant):
    graph, params, _ = golden_stdit.make_model(case.config["model"], case.state_dict())
    inputs, outputs = case.inputs(variant), case.outputs(variant)
    patch = case.config["model"]["patch_size"][1:]
    cut = lambda x: jnp.asarray(golden_stdit.tokens(x, 0, patch))
    like = inputs["noise"]
    whole = lambda z: golden_stdit.latent(z, like, patch)
    start, edit = _start(case, variant)
    clips, z, real = len(like), cut(start), cut(np.ones_like(like))
    doubled = golden_utils.Inputs({name: inputs[name] for name in inputs})
    doubled |= {"y": np.concatenate([inputs["y"]] * 2)}
    settings = golden_stdit.context(doubled, 2 * clips, like, config=case.config["model"])
    settings.pop("mask_Bt")
    text = settings.pop("text_BLE")
    drop = jnp.arange(2 * clips) >= clips
    ratio = jnp.ones(clips) if "plain" in variant else golden_data.exact_ratio(inputs)
    t_nB = flow.time_steps(case.config["num_sampling_steps"], ratio)
    edit = None if edit is None else jnp.asarray(edit)
    done = None if edit is None else edit == 1
    twice = lambda v: None if v is None else jnp.concatenate([v, v])

    @golden_utils.quick_jit
    def predict(z, t_B, mask_Bt):
        model = nnx.merge(graph, params)
        return model(
            twice(z), twice(t_B), text, drop_text_B=drop, mask_Bt=twice(mask_Bt), **settings
        )

    def velocity(z, t_B, mask_Bt):
        out = predict(z, t_B, mask_Bt)
        seen["step_z_in"].append(whole(z))
        seen["step_model_output"].append(whole(out))
        seen["step_x_mask"].append(mask_Bt)
        parts = jnp.split(nnx.merge(graph, params).velocity(out), 2)
        return flow.guide(*parts, case.config["cfg_scale"]) * real

    seen = {"step_z_in": [], "step_model_output": [], "step_x_mask": []}
    for i in range(len(t_nB) - 1):
        noise = cut(inputs["step_noise"][i] if "step_noise" in inputs else like)
        with mock.patch.object(jax.random, "normal", lambda key, shape, noise=noise: noise):
            z, done = flow.euler_step(
                velocity, z, t_nB[i], t_nB[i + 1], edit_Bt=edit, done_Bt=done, key=0
            )
    got = {name: np.stack(steps) for name, steps in seen.items() if steps[0] is not None}
    got |= {"step_t": 1000 * t_nB[:-1], "samples": whole(z), "z_start": start}
    case.check_all(variant, got | ({} if edit is None else {"mask": edit}))
    assert set(outputs) <= set(got) | {"mask"}


_CHECKS = {
    "timestep_warp": golden_data.check_timestep_warp,
    "timestep_draw": _check_draws,
    "add_noise": _check_noising,
    "loss_": _check_loss,
    "sample_": _check_sampling,
}


def _train_config(facts):
    b1, b2 = facts["betas"]
    optimizer = {"clip": facts["grad_clip"], "b1": b1, "b2": b2, "eps": facts["eps"]}
    optimizer |= {"weight_decay": facts["weight_decay"]}
    frozen = ("y_embedder/.*",) if facts["model"].get("freeze_y_embedder") else ()
    optimizer["freeze"] = ("rope_freqs", *(frozen or ("y_embedder/y_embedding",)))
    config = {"seed": 0, "num_steps": facts["steps"], "optim": optimizer}
    config["schedule"] = {"lr": facts["lr"], "warmup_steps": facts["warmup_steps"]}
    return ConfigDict(config | {"ema_decay": facts["ema_decay"]})


def check_train_steps(case):
    """The product's own update, with times and noise given."""
    config, inputs = _train_config(case.config), case.inputs("batch")
    inputs.read |= UNUSED
    graph, params, tensors = golden_stdit.make_model(case.config["model"], case.state_dict())
    patch = case.config["model"]["patch_size"][1:]
    cut = lambda x: jnp.asarray(golden_stdit.tokens(x, 0, patch))
    real = cut(np.ones_like(inputs["x"][0]))

    def loss(params, frozen, batch, key):
        model, mask_Bt = nnx.merge(graph, params), batch["mask_Bt"]
        settings = {k: v for k, v in batch.items() if k not in ("x", "noise", "t_B", "text_BLE")}
        noisy, velocity = flow.interpolate(batch["x"], batch["noise"], batch["t_B"], mask_Bt)
        prediction = model(noisy, batch["t_B"], batch["text_BLE"], **settings)
        return flow.loss(model.velocity(prediction), velocity, real, mask_Bt).mean(), {}

    def batch_of(k):
        by_step = ("x", "noise", "t", "y", "text_mask", "frame_mask")
        now = {name: inputs[name][k] if name in by_step else inputs[name] for name in inputs}
        batch = golden_stdit.context(now, len(now["x"]), now["x"], config=case.config["model"])
        return batch | {"x": cut(now["x"]), "noise": cut(now["noise"]), "t_B": now["t"] / 1000}

    task = types.SimpleNamespace(init=lambda key: params, loss=loss)
    tx = train_state.make_optimizer(config)
    update = train_state.Update(task, tx, config)
    state = train_state.init_state(jax.random.key(0), task=task, tx=tx)
    with jax.default_matmul_precision("highest"):
        update.gradient = golden_utils.quick_jit(update.gradient.__wrapped__)
        update.apply, seen = golden_utils.quick_jit(update.apply.__wrapped__), []
        for k in range(config.num_steps):
            state, metrics = update(state, {}, [(batch_of(k), k, 1.0)])
            seen.append((metrics["loss"], metrics["grad_norm"]))
    rate = optim.schedule(config.num_steps, **config.schedule)
    got = {"loss": np.array([loss for loss, _ in seen])}
    got["grad_norm_before_clip"] = np.array([norm for _, norm in seen])
    got["lr"] = np.array([rate(k) for k in range(config.num_steps)])
    for group, tree in (("final", state.params), ("ema", state.ema)):
        got |= {f"{group}/{t.name}": golden_stdit.value(tree, tensors, t.name) for t in tensors}
    case.check_all("training", got)
    frozen = [t.name for t in tensors if t.path.startswith("y_embedder/")] + ["rope.freqs"]
    if not case.config["model"].get("freeze_y_embedder"):
        frozen = ["y_embedder.y_embedding", "rope.freqs"]
    for name in frozen:
        before = golden_stdit.value(params, tensors, name)
        np.testing.assert_array_equal(got[f"final/{name}"], before)
