"""Pictures in, batches out: image folders, built-in sets, what networks are fed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
