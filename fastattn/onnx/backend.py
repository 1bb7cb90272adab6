"""onnx.backend.base of sessions."""

from collections.abc import Mapping
from typing import Any

from onnx.backend import base

from fastattn.onnx.session import Session


class Representation(base.BackendRep):
    """A prepared model."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **_options: Any) -> tuple[Any, ...]:
        """Outputs of inputs in the order of the model, or by name."""
        if not isinstance(inputs, Mapping):
            values = inputs if isinstance(inputs, list | tuple) else [inputs]
            names = [info.name for info in self.session.get_inputs()]
            if len(values) != len(names):
                raise ValueError(f"run: inputs must be {len(names)} arrays, got {len(values)}")
            inputs = dict(zip(names, values, strict=True))
        return tuple(self.session.run(None, inputs))


class Backend(base.Backend):
    """The backend of onnx.backend's interface, on the CPU."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **_options: Any) -> bool:
        """Whether prepare takes the model."""
        if not cls.supports_device(device):
            return False
        try:
            Session(model)
        except (ValueError, NotImplementedError):
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **_options: Any) -> Representation:
        """The model, planned once, for many runs."""
        if not cls.supports_device(device):
            raise ValueError(f"prepare: device must be CPU, got {device}")
        return Representation(Session(model))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **options: Any) -> tuple[Any, ...]:
        """The outputs of one run."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Of the CPU alone."""
        return device.split(":", maxsplit=1)[0] == "CPU"


prepare, run_model, supports_device = Backend.prepare, Backend.run_model, Backend.supports_device
