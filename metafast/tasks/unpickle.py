"""Pickles of plain data and numpy arrays, read without executing anything that they ask for.

A pickle is a program: it names functions and classes and has them called. Here each name that plain data needs stands
for a small stand-in of this file, which only keeps what it is given; every other name is refused. numpy's own
functions are not called either, for they trust a pickle's numbers.
"""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from metafast.tasks.archive import DataError

Array = npt.NDArray[Any]
#: Numbers, truth values and texts: nothing that holds objects.
CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,4})")


def load(path: str | Path) -> Any:
    """Dicts, lists, tuples, sets, numbers, texts, bytes and numpy arrays of numbers; gzip's compression is undone.

    Byte strings of Python 2 come as bytes. DataError if the file is damaged or asks for anything else, naming it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            compressed = file.peek(2).startswith(b"\x1f\x8b")
            with gzip.open(file) if compressed else file as stream:
                return _plain(_Unpickler(stream, encoding="bytes").load())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except _Refused as error:
        raise DataError(
            f"{path} asks for {error}, which is neither plain data nor a numpy array of numbers. "
            "A pickle can run any program: it was not executed"
        ) from None
    except Exception as error:  # of a damaged pickle, any
        raise DataError(f"{path} is no whole pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """By the name that was asked for."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused(f"an object kept elsewhere ({pid!r})")


class _StandIn:
    """What a pickle may make and fill; filling is defined, or Python would set any attributes of it."""

    __slots__ = ("state",)
    state: Any

    def __new__(cls, *arguments: Any) -> Any:
        made = object.__new__(cls)
        made.state = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"filling {type(self).__name__}")


class _Ndarray(_StandIn):
    """The class itself, which _reconstruct is given."""

    __slots__ = ()


class _Dtype(_StandIn):
    __slots__ = ("code",)
    code: Any

    def __new__(cls, code: Any, *_: Any) -> Any:
        made = super().__new__(cls)
        made.code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not (isinstance(made.code, str) and CODE.fullmatch(made.code)):
            raise _Refused(f"a numpy array of {made.code!r}")
        return made

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"a numpy array of the byte order {order!r}")
        self.code = order + self.code.lstrip("<>|=")


class _Array(_StandIn):
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"), filled with (version, shape, dtype, fortran, bytes)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state[-4:]

    def value(self) -> Array:
        shape, dtype, fortran, content = self.state
        return _array(content, dtype, shape, "F" if fortran else "C")


class _Buffer(_StandIn):
    """numpy.core.numeric._frombuffer(buffer, dtype, shape, order), of protocol 5."""

    __slots__ = ()

    def value(self) -> Array:
        return _array(*self.state)


class _Scalar(_StandIn):
    """numpy.core.multiarray.scalar(dtype, bytes)"""

    __slots__ = ()

    def value(self) -> Any:
        dtype, content = self.state
        return _array(content, dtype, (), "C").item()


class _Encoded(_StandIn):
    """_codecs.encode(text, "latin1") or bytes(), as which Python 3 writes bytes for older protocols."""

    __slots__ = ()

    def value(self) -> bytes:
        text, codec = self.state or ("", "latin1")
        if codec != "latin1":
            raise _Refused(f"the codec {codec!r}")
        return bytes(text.encode("latin-1"))


class _Mapping(_StandIn):
    """collections.OrderedDict(), whose items follow one by one."""

    __slots__ = ("items",)
    items: dict[Any, Any]

    def __new__(cls, *pairs: Any) -> Any:
        made = super().__new__(cls)
        made.items = dict(*pairs)
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,
    ("collections", "OrderedDict"): _Mapping,
}


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    if isinstance(content, _Encoded):
        content = content.value()
    if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise ValueError(f"an array is made of {type(content).__name__} and {type(dtype).__name__}")
    array: Array = np.frombuffer(content, np.dtype(dtype.code)).reshape(shape, order=order)
    return array


def _plain(value: Any) -> Any:
    """Stand-ins replaced by what they stand for."""
    if isinstance(value, (_Array, _Buffer, _Scalar, _Encoded)):
        return value.value()
    if isinstance(value, _Mapping):
        return _plain(value.items)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(map(_plain, value))
    if isinstance(value, (_StandIn, type)):
        raise _Refused(f"{value!r} for itself")
    return value
