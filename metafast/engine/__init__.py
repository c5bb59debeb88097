"""The two engines: native code behind autograd, and plain torch, which runs any module."""
