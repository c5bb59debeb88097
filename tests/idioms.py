"""Forward code as people publish it: networks of torchvision, timm, few-shot and reinforcement-learning repositories in
small, with their asserts, loops, containers and reshapes.

Each entry is a module and the shape of an example. ``lacks`` is why it has no native form, where it has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forms import C, L, as_tuple, flattened, of, seq

IMAGE, VECTOR, SEQUENCE = (2, 8, 8), (6,), (4, 6)


@dataclass(frozen=True)
class Idiom:
    build: Callable[[], nn.Module]
    example: tuple[int, ...]
    lacks: str = ""


class LeNet(nn.Module):
    """The tutorial's, which counts its features in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = C(2, 3, 3), C(3, 4, 2)
        self.fc1, self.fc2 = L(16, 8), L(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4 and x.shape[1] == 2, f"expected images, got {x.shape}"
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.relu(self.conv2(x))
        x = x.view(-1, self.num_flat_features(x))
        return self.fc2(F.relu(self.fc1(x)))

    def num_flat_features(self, x: Tensor) -> int:
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = C(inplanes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = C(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        if identity.shape != out.shape:
            raise ValueError(f"{identity.shape} does not fit {out.shape}")
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """torchvision's, with its hook for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(BasicBlock(2, 3, nn.Sequential(C(2, 3, 1), nn.BatchNorm2d(3))), BasicBlock(3, 3))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), L(3, 2)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.layer1(x))
        x = torch.flatten(x, 1)
        return self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class Timm(nn.Module):
    """Features and head apart, with arguments that have defaults."""

    def __init__(self, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.stem, self.head, self.drop_rate = C(2, 4, 3, stride=2), L(4, 3), drop_rate
        self.grad_checkpointing = False

    def forward_features(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[-2] == 8 and x.shape[-1] == 8, f"the input is {x.shape}")
        if self.grad_checkpointing and not torch.jit.is_scripting():
            raise NotImplementedError
        return F.silu(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean([-2, -1])
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, *, pre_logits: bool = False, **unused: Any) -> Tensor:
        return self.forward_head(self.forward_features(x), pre_logits=pre_logits)


class Learner(nn.Module):
    """A MAML repository's network of a list of layers' names, over parameters in a list."""

    def __init__(self, config: list[tuple[str, list[int]]]) -> None:
        super().__init__()
        self.config, self.vars, self.vars_bn = config, nn.ParameterList(), nn.ParameterList()
        for name, param in config:
            if name in ("conv2d", "linear"):
                self.vars.append(nn.Parameter(torch.randn(*param[:4]) / 3))
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
            elif name == "bn":
                self.vars.append(nn.Parameter(torch.ones(param[0])))
                self.vars.append(nn.Parameter(torch.zeros(param[0])))

    def forward(self, x: Tensor, vars: Any = None, bn_training: bool = True) -> Tensor:
        if vars is None:
            vars = self.vars
        idx = 0
        for name, param in self.config:
            if name == "conv2d":
                x = F.conv2d(x, vars[idx], vars[idx + 1], stride=param[4], padding=param[5])
                idx += 2
            elif name == "linear":
                x = F.linear(x, vars[idx], vars[idx + 1])
                idx += 2
            elif name == "bn":
                x = F.batch_norm(x, None, None, weight=vars[idx], bias=vars[idx + 1], training=bn_training)
                idx += 2
            elif name == "flatten":
                x = x.view(x.size(0), -1)
            elif name == "relu":
                x = F.relu(x, inplace=param[0])
            else:
                raise NotImplementedError
        assert idx == len(vars)
        return x


CONFIG = [("conv2d", [3, 2, 3, 3, 2, 0]), ("relu", [True]), ("bn", [3]), ("flatten", []), ("linear", [2, 27])]


class Conv4(nn.Module):
    """Of prototypical networks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(self.conv_block(2, 3), self.conv_block(3, 3))

    @staticmethod
    def conv_block(i: int, o: int) -> nn.Module:
        return nn.Sequential(C(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return x.view(x.size(0), -1)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([L(6, 6), L(6, 6), L(6, 4)])
        self.heads = nn.ModuleDict({"a": L(4, 2), "b": L(4, 3)})
        self.policy, self.value, self.mode, self.task = L(4, 2), L(4, 1), "value", "b"

    def forward(self, x: Tensor) -> Tensor:
        collected: dict[str, Any] = {"layers": []}
        for i, layer in enumerate(self.body):
            x = layer(x)
            if i < len(self.body) - 1:
                x = torch.tanh(x)
            collected["layers"].append(x)
        outputs = {name: head(collected["layers"][-1]) for name, head in self.heads.items()}
        outputs["mode"] = getattr(self, self.mode)(x)
        return torch.cat([outputs[self.task], outputs["mode"]], -1)


class DenseLayer(nn.Module):
    """torchvision's, which takes a tensor or a list of tensors."""

    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(i), C(i, growth, 3, padding=1, bias=False)

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        prev_features = [input] if isinstance(input, Tensor) else input
        return self.conv(F.relu(self.norm(torch.cat(prev_features, 1))))


class DenseBlock(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__()
        for i in range(3):
            self.add_module(f"denselayer{i + 1}", DenseLayer(2 + i * 2, 2))

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for _, layer in self.items():  # noqa: PERF102
            features.append(layer(features))
        return torch.cat(features, 1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


def patches(m: Any, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    p = m.patch_size
    assert H % p == 0 and W % p == 0, f"{H} x {W} does not divide into patches of {p}"
    x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), -1)
    return m.fc(m.embed(x).mean(dim=1))


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    y = F.adaptive_avg_pool2d(x, 1).view(b, c)
    y = torch.sigmoid(m.fc(y)).view(b, c, 1, 1)
    return x * y.expand_as(x)


def unrolled(m: Any, x: Tensor) -> Tensor:
    outputs = []
    h = torch.tanh(m.ih(x[:, 0]))
    for t in range(1, x.size(1)):
        h = torch.tanh(m.ih(x[:, t]) + m.hh(h))
        outputs.append(h)
    return torch.stack(outputs, dim=1)[:, -1, :]


def from_zeros(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.size(0), 4)
    for t in range(x.size(1)):
        h = torch.tanh(m.ih(x[:, t]) + m.hh(h))
    return h


def time_distributed(m: Any, x: Tensor) -> Tensor:
    batch_size, num_points, _ = x.size()
    h = m.fc(x.view(batch_size * num_points, -1))
    return h.view(batch_size, num_points, -1).mean(dim=1)


def all_rows(m: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    gated = F.relu(rows) * x.view(-1, 6) + m.fc.weight[0]
    return m.fc(gated).view(*x.shape[:2], -1).flatten(1)


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    return torch.matmul(F.softmax(scores, dim=-1), v)


def up(m: Any, x: Tensor) -> Tensor:
    x1 = m.down(x)
    x1 = F.interpolate(m.conv(x1), scale_factor=2, mode="nearest")
    diff_y, diff_x = x.size()[2] - x1.size()[2], x.size()[3] - x1.size()[3]
    x1 = F.pad(x1, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
    return m.out(torch.cat([x, x1], dim=1))


def skip(m: Any, x: Tensor) -> Tensor:
    down = F.relu(m.down(x))
    return m.out(torch.cat([x, F.pixel_shuffle(down, 2)], dim=1))


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return x * x.new_empty(shape).bernoulli_(1 - drop_prob)


def residual_path(m: Any, x: Tensor) -> Tensor:
    return x + drop_path(m.fc(x), 0.3, m.training)


def casts(m: Any, x: Tensor) -> Tensor:
    parameter = next(m.parameters())
    x = x.to(parameter.device, non_blocking=True).to(dtype=parameter.dtype).type_as(parameter).to(x)
    assert x.is_floating_point() and x.dtype == m.fc.weight.dtype and x.device.type == "cpu" and not x.is_cuda
    return m.fc(x.contiguous())


def many_axes(m: Any, x: Tensor) -> Tensor:
    if x.ndim == 2:
        x = x.unsqueeze(1)
    elif x.dim() == 3:
        x = x.permute(0, 2, 1)
    else:
        raise RuntimeError(f"{x.dim()} axes")
    *_, channels, length = x.shape
    return m.fc(x.reshape(-1, channels * length))


def logged(m: Any, x: Tensor) -> Tensor:
    if m.verbose:
        print("in", x.shape, x.size(0), f"{tuple(x.shape)}", x.dtype)
    return m.fc(x)


def only_first(m: Any, *args: Tensor, scale: float = 1.0, **kwargs: Any) -> Tensor:
    (x,) = args
    return m.fc(x) if scale == 1 and not kwargs else x


def rest_flat(m: Any, x: Tensor) -> Tensor:
    return m.fc(x.reshape(x.shape[:1] + (x.shape[1:].numel(),)))  # noqa: RUF005


def guarded(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.fc(x)) if x.size(0) > 1 else m.fc(x)


def with_verbose(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = build()
        model.verbose, model.patch_size = True, 4  # type: ignore[assignment]
        return model

    return make


def fc(function: Callable[[Any, Tensor], Any], i: int = 6, o: int = 4) -> Callable[[], nn.Module]:
    return of(function, fc=lambda: L(i, o))


def evaluated(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().eval()


IDIOMS: dict[str, Idiom] = {
    "LeNet": Idiom(LeNet, IMAGE),
    "ResNet": Idiom(ResNet, IMAGE),
    "timm": Idiom(evaluated(Timm), IMAGE),
    "VGG": Idiom(evaluated(seq(lambda: C(2, 3, 3, padding=1), nn.ReLU, lambda: nn.MaxPool2d(2),
                               lambda: nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten, lambda: L(12, 4),
                               lambda: nn.ReLU(True), nn.Dropout, lambda: L(4, 2))), IMAGE),
    "MAML's list of layers": Idiom(lambda: Learner(CONFIG), IMAGE),  # type: ignore[arg-type]
    "ProtoNet": Idiom(Conv4, IMAGE),
    "learn2learn": Idiom(of(lambda m, x: m.fc(m.hidden(x.view(-1, 2, 8, 8)).mean(dim=[2, 3])), fc=lambda: L(3, 2),
                            hidden=lambda: C(2, 3, 3)), (128,)),
    "heads by name": Idiom(Heads, VECTOR),
    "DenseNet": Idiom(DenseBlock, IMAGE),
    "channel shuffle": Idiom(of(lambda m, x: channel_shuffle(m.conv(x), 2), conv=lambda: C(2, 4, 1)), IMAGE),
    "patches": Idiom(with_verbose(of(patches, embed=lambda: L(32, 5), fc=lambda: L(5, 2))), IMAGE),
    "a loop over time": Idiom(of(unrolled, ih=lambda: L(6, 4), hh=lambda: L(4, 4)), SEQUENCE),
    "for each step": Idiom(fc(lambda m, x: m.fc(sum(torch.tanh(step) for step in x.transpose(0, 1)))), SEQUENCE),
    "for each row": Idiom(fc(lambda m, x: torch.stack([(x * row).sum(-1) for row in m.fc.weight], 1)), VECTOR),
    "DeepSets": Idiom(of(lambda m, x: m.rho(F.relu(m.phi(x)).sum(dim=1)), phi=lambda: L(6, 5), rho=lambda: L(5, 2)),
                      SEQUENCE),
    "concatenated skip": Idiom(of(skip, down=lambda: C(2, 8, 3, stride=2, padding=1), out=lambda: C(4, 2, 1)), IMAGE),
    "stochastic depth": Idiom(evaluated(fc(residual_path, 6, 6)), VECTOR),
    "casts": Idiom(fc(casts), VECTOR),
    "branch on rank, vector": Idiom(fc(many_axes), VECTOR),
    "branch on rank, sequence": Idiom(fc(many_axes, 24), SEQUENCE),
    "prints shapes": Idiom(with_verbose(fc(logged)), VECTOR),
    "*args": Idiom(fc(only_first), VECTOR),
    "helpers elsewhere": Idiom(fc(lambda m, x: m.fc(flattened(as_tuple(x)[0])), 128), IMAGE),
    "means in a chain": Idiom(fc(lambda m, x: m.fc(x.mean(3).mean(2)), 2), IMAGE),
    "squeezed twice": Idiom(fc(lambda m, x: m.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)), 2), IMAGE),
    "channels last": Idiom(of(lambda m, x: m.conv(x.to(memory_format=torch.channels_last)).flatten(1),
                              conv=lambda: C(2, 3, 3)), IMAGE),
    "regression": Idiom(fc(lambda m, x: m.fc(x).squeeze(-1).unsqueeze(-1), 6, 1), VECTOR),
    "shape handed on": Idiom(fc(lambda m, x: m.fc(x.view(*x.shape[:2], -1)), 64), IMAGE),
    "shape of the rest": Idiom(fc(rest_flat, 128), IMAGE),
    "the same shape": Idiom(fc(lambda m, x: m.fc(x).view(x.shape) if x.size() == m.fc(x).size() else x, 6, 6), VECTOR),
    "a part by half": Idiom(fc(lambda m, x: m.fc(x[:, : x.shape[-1] // 2]), 3), VECTOR),
    "a context": Idiom(of(lambda m, x: m.fc(torch.cat((x, m.list[0].expand(x.shape[0], -1)), dim=1)),
                          list=lambda: nn.ParameterList([nn.Parameter(torch.randn(2))]), fc=lambda: L(8, 3)), VECTOR),
    "a guard for one example": Idiom(of(guarded, fc=lambda: L(6, 4), norm=lambda: nn.BatchNorm1d(4)), VECTOR,
                                     "decides by the number N of examples"),
    "DQN": Idiom(fc(lambda m, x: m.fc((x.type_as(m.fc.weight) / 255.0).view(x.size(0), -1)), 128), IMAGE),
    "SIREN": Idiom(fc(lambda m, x: torch.sin(30 * m.fc(x))), VECTOR),
    "squeeze and excitation": Idiom(of(squeeze_excite, fc=lambda: L(2, 2)), IMAGE),
    "GLU": Idiom(fc(lambda m, x: (lambda a, b: a * torch.sigmoid(b))(*m.fc(x).chunk(2, dim=-1))), VECTOR),
    "starts from zeros": Idiom(of(from_zeros, ih=lambda: L(6, 4), hh=lambda: L(4, 4)), SEQUENCE),
    "zeros by torch": Idiom(fc(lambda m, x: m.fc(x + torch.zeros(x.size(0), 6, dtype=x.dtype))), VECTOR),
    "padded with zeros": Idiom(fc(lambda m, x: m.fc(torch.cat([x, torch.zeros_like(x[:, :2])], 1)), 8), VECTOR),
    "layers put together": Idiom(of(lambda m, x: nn.Sequential(*m.layers[:-1], nn.ReLU(), *m.layers[-1:])(x),
                                    layers=lambda: nn.ModuleList([L(6, 5), nn.Tanh(), L(5, 2)])), VECTOR),
    "the first layers": Idiom(of(lambda m, x: nn.Softplus()(m.body[:2](x)), body=seq(lambda: L(6, 5), nn.Tanh,
                                                                                       lambda: L(5, 2))), VECTOR),
    "a shape's type": Idiom(fc(lambda m, x: m.fc(x) if isinstance(x.shape, torch.Size) and x.size() else x), VECTOR),
    "activation by name": Idiom(fc(lambda m, x: vars(F)["leaky_relu"](m.fc(x), negative_slope=0.2)), VECTOR),
    "exact type": Idiom(fc(lambda m, x: m.fc(x) if type(x) is Tensor and not hasattr(x, "tensors") else x), VECTOR),
    "checkpoint": Idiom(fc(lambda m, x: checkpoint(m.fc, x, use_reentrant=False)), VECTOR),
    "N times points": Idiom(fc(time_distributed), SEQUENCE),
    "rows of all examples": Idiom(fc(all_rows, 6, 2), SEQUENCE),
    "attention": Idiom(of(attention, qkv=lambda: L(6, 12)), SEQUENCE),
    "U-Net": Idiom(of(up, down=lambda: nn.MaxPool2d(2), conv=lambda: C(2, 3, 3, padding=1), out=lambda: C(5, 2, 1)),
                   IMAGE),
    "PointNet": Idiom(of(lambda m, x: m.fc(torch.max(F.relu(m.conv(x.transpose(2, 1))), 2, keepdim=True)[0]
                                           .view(-1, 5)), conv=lambda: nn.Conv1d(6, 5, 1), fc=lambda: L(5, 2)),
                      SEQUENCE),
    "tied decoder": Idiom(fc(lambda m, x: F.linear(torch.relu(m.fc(x)), m.fc.weight.t())), VECTOR),
    "pre-norm": Idiom(of(lambda m, x: x + m.fc(m.norm(x)), norm=lambda: nn.LayerNorm(6), fc=lambda: L(6, 6)), SEQUENCE),
}  # fmt: skip
