"""The interactive page: a picture that answers when it is pulled, in one file without a network."""

from dyngen.view.page import view

__all__ = ["view"]
