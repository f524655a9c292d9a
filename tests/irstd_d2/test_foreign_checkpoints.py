"""Checkpoints of mmengine as they are: weights are read, nothing else comes to life, what is unknown is named."""

import datetime
import pathlib
import zipfile
from collections import OrderedDict, defaultdict, deque
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model

import auxdet_d2
import bafe_d2
from auxdet_d2.checkpoint import AUXDET_NAMES
from bafe_d2.checkpoint import BAFE_NAMES
from irstd_d2 import get_config
from irstd_d2.checkpoint import load_plain, read_state_dict, with_versions
from irstd_d2.checkpoint.files import _Inert
from irstd_d2.cli.convert_checkpoint import convert
from irstd_d2.equality import read_manifest
from irstd_d2.errors import DatasetError

CLASSES = ("target",)
SGD = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}}
ADAMW = {"type": "AdamW", "lr": 0.01, "weight_decay": 0.05}
BFLOAT16 = SGD | {"type": "AmpOptimWrapper", "dtype": "bfloat16"}


def toy_net():
    return torch.nn.Sequential(OrderedDict(conv1=torch.nn.Linear(2, 4), bn1=torch.nn.BatchNorm1d(4)))


def train(folder, network, several=False, optimizer=SGD, **changes):
    """Two epochs by mmengine's Runner in ``folder``; returns the Runner.

    Mixed precision computes in bfloat16 with torch's scaler of gradients, which mmengine allows on a GPU alone.
    """
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.optim.optimizer import amp_optimizer_wrapper
    from mmengine.runner import Runner

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            for name, child in network.named_children():
                self.add_module(name, child)

        def forward(self, inputs, mode="tensor"):
            loss = torch.stack([p.square().sum() for p in self.parameters()]).sum()
            return {"loss": loss} if mode == "loss" else [{}] * len(inputs)

        def train_step(self, data, optim_wrapper):
            if not several:
                return super().train_step(data, optim_wrapper)
            for wrapper in optim_wrapper.values():
                with wrapper.optim_context(self):
                    loss = self(**data, mode="loss")["loss"]
                wrapper.update_params(loss)
            return {"loss": loss.detach()}

    class Data(torch.utils.data.Dataset):
        def __init__(self):
            self.metainfo = {"classes": CLASSES, "palette": [(220, 20, 60)]}

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"inputs": torch.tensor([index, 1.0])}

    class Score(BaseMetric):
        default_prefix = "pascal_voc"

        def process(self, _, samples):
            self.results.append(len(samples))

        def compute_metrics(self, results):
            return {"mAP": np.float32(0.5), "AP50": np.float64(sum(results))}

    net = Net()
    if several:
        parts = {name: child.parameters() for name, child in network.named_children()}
        optimizer = OptimWrapperDict(**{k: OptimWrapper(torch.optim.AdamW(v, 0.01)) for k, v in parts.items()})
    loader = {"batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": True}, "dataset": Data()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
        patch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
        runner = Runner(
            net,
            str(folder),
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=[Score()],
            train_cfg={"by_epoch": True, "max_epochs": 2},
            val_cfg={},
            optim_wrapper=optimizer,
            default_hooks={
                "checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "auto", "rule": "greater"}
            },
            cfg={"model": {"type": "Net"}},
            default_scope="mmengine",
            experiment_name=str(folder).replace("/", "_"),
            **changes,
        )
        runner.train()
    return runner


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a training with AdamW by groups, schedules, averaged weights, mixed precision, curves, a best score."""
    folder = tmp_path_factory.mktemp("mmengine")
    groups = {"norm_decay_mult": 0.0, "custom_keys": {"conv1": {"lr_mult": 0.1}}}
    runner = train(
        folder,
        toy_net(),
        optimizer=BFLOAT16 | {"optimizer": ADAMW, "paramwise_cfg": groups},
        param_scheduler=[{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 2},
                         {"type": "MultiStepLR", "milestones": [1], "by_epoch": True}],
        custom_hooks=[{"type": "EMAHook", "momentum": 0.2}],
    )  # fmt: skip
    torch.save(runner.model.state_dict(), folder / "not_averaged.pth")
    return folder


@pytest.fixture
def content(trained):
    """The last checkpoint as mmengine reads it."""
    return torch.load(trained / "epoch_2.pth", weights_only=False)


def test_what_is_read_is_of_mmengines_structure(content):
    assert content.keys() == {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers", "ema_state_dict"}
    assert type(content["message_hub"]["log_scalars"]["train/loss"]).__name__ == "HistoryBuffer"
    assert content["message_hub"]["runtime_info"]["best_score"] == 0.5
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES
    assert len(content["optimizer"]["param_groups"]) == 4
    assert content["optimizer"]["loss_scaler"]["scale"] == 65536


@pytest.mark.parametrize("name", ["epoch_1.pth", "epoch_2.pth", "best_pascal_voc_mAP_epoch_1.pth"])
def test_weights_beside_everything_else_are_read(trained, name):
    expected = torch.load(trained / name, weights_only=False)["state_dict"]
    state = read_state_dict(trained / name)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_the_averaged_weights_are_read(trained):
    state, plain = read_state_dict(trained / "epoch_2.pth"), torch.load(trained / "not_averaged.pth")
    assert not torch.equal(state["conv1.weight"], plain["conv1.weight"])


ONE_CYCLE = {"type": "OneCycleLR", "total_steps": 2, "eta_max": 0.1, "by_epoch": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"param_scheduler": [ONE_CYCLE]},  # keeps a function
        {"param_scheduler": [ONE_CYCLE | {"anneal_strategy": "linear"}]},
        {"param_scheduler": [{"type": "ReduceOnPlateauLR", "monitor": "pascal_voc/mAP", "rule": "greater"},
                             {"type": "LinearMomentum", "start_factor": 0.5}]},
        {"several": True, "param_scheduler": {name: [{"type": "PolyLR"}, {"type": "StepLR", "step_size": 1}]
                                              for name in ("conv1", "bn1")}},
        {"custom_hooks": [{"type": "EMAHook", "ema_type": "StochasticWeightAverage", "update_buffers": True}]},
        {"optimizer": BFLOAT16 | {"loss_scale": {"init_scale": 512.0}, "clip_grad": {"max_norm": 1.0}}},
    ],
    ids=["one cycle", "one cycle, linear", "plateau", "several optimizers", "average", "mixed precision"],
)  # fmt: skip
def test_every_kind_of_training(tmp_path, changes):
    train(tmp_path, toy_net(), **changes)
    expected = torch.load(tmp_path / "epoch_2.pth", weights_only=False)["state_dict"]
    state = read_state_dict(tmp_path / "epoch_2.pth")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


class Module(torch.nn.Module):
    """Refuses a state without a version: mmdet's heads take it for an old one, and rename what ends in ``cls``."""

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        assert "version" in local_metadata, prefix
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def network_of(state):
    """Modules that have these tensors under these names, as the published code does when it loads strictly."""
    root = Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Module())
            module = module._modules[part]
        if value.is_floating_point() and not last.startswith(("running_", "epsilon")):
            module.register_parameter(last, torch.nn.Parameter(value.clone()))
        else:
            module.register_buffer(last, value.clone())
    return root


NARROW = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
NARROW += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8]


@pytest.mark.parametrize(
    ("system", "names", "options", "changes"),
    [
        (auxdet_d2, AUXDET_NAMES, ["MODEL.ROI_BOX_HEAD.FC_DIM", 32],
         {"optimizer": BFLOAT16, "param_scheduler": [ONE_CYCLE]}),
        (bafe_d2, BAFE_NAMES, [],
         {"optimizer": BFLOAT16 | {"loss_scale": 512.0}, "custom_hooks": [{"type": "EMAHook"}]}),
    ],
    ids=["auxdet", "bafe"],
)  # fmt: skip
def test_a_training_of_both_systems_with_resnet_18_becomes_ours_and_goes_back(
    repo_root, tmp_path, system, names, options, changes
):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.runner import load_checkpoint

    model = system.__name__.removesuffix("_d2")
    detector = build_model(get_config(repo_root / f"configs/{model}/{model}_r18_fpn.yaml", [*NARROW, *options]))
    weights = {name: value for name, value in detector.state_dict().items() if not name.startswith("pixel_")}
    published = names.to_published(weights).values
    # The released names: all but the backbone's as with a ResNet-50, the backbone's torchvision's.
    manifest = read_manifest(next((repo_root / system.__name__ / "reference").glob("*.manifest.json")))
    resnet = {f"backbone.{name}" for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    assert set(published) == {name for name in manifest.rules if not name.startswith("backbone.")} | resnet

    trained = train(tmp_path, network_of(published), **changes).model.state_dict()
    saved = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    assert saved["optimizer"]["loss_scaler"]["scale"] in (65536, 512)
    assert saved["state_dict"].keys() == published.keys()
    weight = "backbone.layer2.0.conv1.weight"
    assert not torch.equal(saved["state_dict"][weight], published[weight])
    assert torch.equal(saved["state_dict"][weight], trained[weight]) == ("ema_state_dict" not in saved)

    convert(model, str(tmp_path / "epoch_2.pth"), str(tmp_path / "ours.pth"))
    found = detector.load_state_dict(load_plain(tmp_path / "ours.pth")["model"], strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) == {"pixel_mean", "pixel_std"} & set(detector.state_dict())
    torch.save({"model": detector.state_dict(), "iteration": 7}, tmp_path / "trained.pth")
    convert(model, str(tmp_path / "trained.pth"), str(tmp_path / "back.pth"), reverse=True)
    back = network_of({name: torch.zeros_like(value) for name, value in published.items()})
    load_checkpoint(back, str(tmp_path / "back.pth"), strict=True)
    used = published.keys() - names.to_ours(published).dropped.keys()
    assert len(used) > 100
    assert all(torch.equal(back.state_dict()[name], saved["state_dict"][name]) for name in used)


def test_versions_are_those_of_a_module():
    state = toy_net().state_dict()
    assert with_versions(dict(state))._metadata == state._metadata


def test_nothing_else_comes_to_life(tmp_path, content):
    torch.save(content, tmp_path / "epoch_1.pth")
    found = load_plain(tmp_path / "epoch_1.pth", stand_ins=True)
    assert type(found["message_hub"]["log_scalars"]["train/loss"]) is _Inert
    assert found["meta"] == content["meta"]
    with pytest.raises(DatasetError, match=r"HistoryBuffer|builtins\.getattr"):
        load_plain(tmp_path / "epoch_1.pth")


def meta():
    """What people put into ``meta`` and the message hub beside strings and numbers."""
    from mmengine.config import Config, ConfigDict
    from mmengine.config.lazy import LazyObject
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub.get_instance("meta")
    hub.update_scalar("loss", np.float32(0.5))
    endless = [1]
    endless.append(endless)
    return {
        "times": (datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), datetime.timedelta(days=1)),
        "paths": [pathlib.Path("a/b"), pathlib.PureWindowsPath("a/b"), {pathlib.Path("key"): 1}],
        "config": Config({"model": {"type": "Net", "layers": [{"channels": (1, 2)}]}}),
        "lazy": ConfigDict(new=[ConfigDict(type=LazyObject("torch.nn").Linear)], of=LazyObject("torch")),
        "nested": defaultdict(list, a=[defaultdict(int, {1: 2})], b=deque([{"x": deque(maxlen=3)}], maxlen=2)),
        "sets": ({1, 2}, frozenset({(1, "a")}), range(3), slice(1, 2), ..., 1j, b"", b"a", 1 << 100, float("nan")),
        "scalars": [np.float32(1), np.float64(1), np.int64(3), np.bool_(True), np.str_("a"), np.datetime64(1, "D")],
        "arrays": [np.ones((2, 3), order="F"), np.zeros(0), np.array(["a", None, 1], object), np.dtype("f4"), np.int8],
        "tensors": OrderedDict(a=torch.Size([1]), b=torch.float16, c=torch.device("cuda:1"), d=torch.ones(2).half()),
        "curves": [HistoryBuffer(), HistoryBuffer([1.0], [1]), hub],
        "endless": endless,
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_containers_and_objects_in_meta(tmp_path, content, zipped):
    content["meta"] |= meta()
    content["message_hub"]["runtime_info"] |= meta()
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(tmp_path / "a.pth") == zipped
    state = read_state_dict(tmp_path / "a.pth")
    assert all(torch.equal(state[name], value) for name, value in content["state_dict"].items())
    found = load_plain(tmp_path / "a.pth", stand_ins=True)["meta"]
    assert {type(thing) for thing in [*found["times"], *found["paths"][:2], found["config"], *found["curves"]]} == {
        _Inert
    }
    assert found["nested"].keys() == {"a", "b"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_of_another_device(tmp_path, content, monkeypatch, zipped):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:3")
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with zipfile.ZipFile(tmp_path / "a.pth") if zipped else (tmp_path / "a.pth").open("rb") as file:
        assert b"cuda:3" in (file.read("a/data.pkl") if zipped else file.read())
    state = read_state_dict(tmp_path / "a.pth")
    assert all(torch.equal(state[name], value) for name, value in content["state_dict"].items())


def test_curves_of_numpy_1(trained, tmp_path):
    """The same file with the module's name of then."""
    with zipfile.ZipFile(trained / "epoch_2.pth") as source, zipfile.ZipFile(tmp_path / "a.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, data)
    assert read_state_dict(tmp_path / "a.pth").keys() == read_state_dict(trained / "epoch_2.pth").keys()


def test_half_precision_stays(tmp_path, content):
    content["state_dict"] = {name: value.half() for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "a.pth")
    assert {value.dtype for value in read_state_dict(tmp_path / "a.pth").values()} == {torch.half}


def test_the_average_alone(tmp_path, content):
    torch.save(content["ema_state_dict"], tmp_path / "a.pth")
    assert "steps" in content["ema_state_dict"]
    state = read_state_dict(tmp_path / "a.pth")
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in content["state_dict"].items()
    }
